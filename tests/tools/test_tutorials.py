"""Every tutorial runs from its first cell to its last, and is stored with its outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
_LARGEST = 3_000_000  # bytes of all notebooks together


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    for library in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'affinity-distill[docs]'")
    spec = importlib.util.spec_from_file_location("tutorials", ROOT / "tools" / "tutorials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_listed(tutorials: ModuleType) -> None:
    assert {path.stem for path in TUTORIALS} == set(tutorials.NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(tutorials: ModuleType, path: Path, tmp_path: Path) -> None:
    notebook = tutorials.run_notebook(path, tmp_path)  # raises where a cell fails
    tutorials.tidy(notebook, tmp_path)
    made, stored = (
        [sorted(output.get("data", {})) for cell in cells for output in cell.get("outputs", []) if "data" in output]
        for cells in (notebook.cells, json.loads(path.read_text(encoding="utf-8"))["cells"])
    )
    assert made == stored  # the same pictures and values, whatever the last digits of a number


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_is_stored_with_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in code)
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    texts = "".join(str(output.get("text", "")) for output in outputs)
    assert "/tmp/" not in texts
    assert "/home/" not in texts


def test_are_small() -> None:
    assert 100_000 < sum(path.stat().st_size for path in TUTORIALS) < _LARGEST
