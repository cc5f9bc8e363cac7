"""Installation shows how far pip has come, and hides nothing that went wrong."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "install.py"

PIP = """
import os, sys, time
folder = sys.argv[1]
def say(text, to=sys.stdout):
    print(text, file=to, flush=True)
say("Collecting torch==2.13.0 (from -c constraints.txt)")
say("  Downloading torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl (191.4 MB)")
say("WARNING: Location 'a' is ignored", sys.stderr)
say("Collecting h5py>=3.11")
say("  Using cached h5py-3.14.0-cp311-cp311-manylinux_2_17_x86_64.whl (4.5 MB)")
say("WARNING: Location 'b' is ignored", sys.stderr)
say("Installing collected packages: torch, h5py")
os.mkdir(folder + "/torch-2.13.0.dist-info")
{rest}
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_tool", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool: ModuleType, tmp_path: Path, rest: str, every: float = 60.0) -> tuple[int, str, str]:
    """Exit code, what was shown, and the log of a stand-in for pip that ends with `rest`."""
    packages, log, out = tmp_path / "site-packages", tmp_path / "install.log", io.StringIO()
    packages.mkdir()
    (packages / "pip-24.0.dist-info").mkdir()
    command = [sys.executable, "-c", PIP.format(rest=rest), str(packages)]
    return tool.install(command, packages, log, out, every=every), out.getvalue(), log.read_text()


def test_large_files_are_named_and_warnings_alike_shown_once(tool: ModuleType, tmp_path: Path) -> None:
    code, shown, log = run(tool, tmp_path, "")
    assert code == 0
    assert "WARNING: Location 'a' is ignored" in shown
    assert "Location 'b'" not in shown
    assert "1 more warnings like those above are in the log" in shown
    assert "torch 2.13.0+cpu, 191 MB" in shown
    assert "h5py" not in shown
    assert "2 packages found, 196 MB fetched; unpacking 2" in shown
    assert "done after" in shown
    assert "Location 'b'" in log
    assert "Using cached h5py" in log


def test_while_pip_is_silent_the_packages_are_counted(tool: ModuleType, tmp_path: Path) -> None:
    """The stand-in ends only after the count was seen, however slow the machine is."""
    stop = tmp_path / "stop"
    rest = f"while not os.path.exists({str(stop)!r}): time.sleep(0.01)"

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if "1 of 2 packages unpacked" in text:
                stop.touch()
            return super().write(text)

    packages = tmp_path / "site-packages"
    packages.mkdir()
    screen = Screen()
    command = [sys.executable, "-c", PIP.format(rest=rest), str(packages)]
    assert tool.install(command, packages, tmp_path / "install.log", screen, every=0.05) == 0
    assert "1 of 2 packages unpacked" in screen.getvalue()


def test_an_error_of_pip_is_shown_and_its_exit_code_kept(tool: ModuleType, tmp_path: Path) -> None:
    error = 'say("ERROR: No space left", sys.stderr)'
    code, shown, log = run(tool, tmp_path, f"{error}; {error}; sys.exit(7)")
    assert code == 7
    assert shown.count("ERROR: No space left") == 2
    assert "failed after" in shown
    assert "ERROR: No space left" in log


def test_files_of_this_machine_are_counted_without_sizes(tool: ModuleType, tmp_path: Path) -> None:
    counter = tool.Counter(tmp_path)
    assert counter.so_far() == "pip prepares"
    for line in ("Looking in links: /wheels", "Processing /wheels/numpy-2.4.0-cp311.whl", "Processing ./project"):
        assert counter.take(line) is None
    assert counter.so_far() == "2 packages found"
