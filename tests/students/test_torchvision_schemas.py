"""torchvision is imported, whichever torch it was built for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from students.torchvision_schemas import heal_torchvision

TWICE = """
import sys

try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
from students.torchvision_schemas import heal_torchvision

heal_torchvision()
import torchvision
heal_torchvision()
assert sys.modules["torchvision"] is torchvision
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models import resnet18

resnet18()
print("imported")
"""


def test_healing_after_a_failed_import_and_twice() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [RuntimeError("another reason")]

    def broken_once(name: str) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(importlib, "import_module", broken_once)
    with pytest.raises(RuntimeError, match="another reason"):
        heal_torchvision()
