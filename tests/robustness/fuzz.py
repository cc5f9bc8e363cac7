"""Damage files of every kind at random and read them by every command that takes them.

Each case must end with exit code 2 and one line that names the file, or with exit code 0 and the right data. A
traceback, a hang, a crash, zeros in place of data, or a file written or removed outside the output is a finding.

    python tests/robustness/fuzz.py --seed 0 --count 1000

A case is given by seed and number alone: `--seed 0 --only 17` repeats it and keeps its files.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fuzz_changes import damage
from fuzz_files import EXACT, KINDS, Kind, make_shared

_PATIENCE = 60.0  # seconds for one case; none takes more than a few
_MEMORY = 8 * 2**30  # bytes that a command may take more than an idle worker
_ZEROS = 0.05  # share of voxels that may be zero where they should not be, unless that is said
_SLOW = ("stream", "segment --thresholds", "segment --resume", "stream --resume", "section", "train")
_RARE = 0.25  # weight of these among the commands
_OURS = re.compile(
    r"Traceback|NoneType|object at 0x|has no attribute|not subscriptable|unsupported operand|invalid literal|"
    r"object is not|list index|\bKeyError|\bTypeError|\bValueError|\bIndexError|takes \d+ positional|dtype\('|"
    r"cannot be read: (?:'\w+'|\d+)$|expected str, bytes|PosixPath|__\w+__\(|codec can't|"
    r"FAILED_PRECON|_decode|_decompress|zip\(\)|modulo by zero|header=b|mmap length|pickled|Can't sync|visitation|"
    r"deserializing|instance of|valid tuple|"
    r"Errno|Error parsing object member|must be real number|not JSON serializable|numpy\.|broadcast"
)


@dataclass
class Found:
    """What a case led to.

    Attributes:
        number: of the case.
        kind: of file.
        command: that read it.
        change: what was done to the file.
        code: exit code; None where the process died or had to be ended.
        verdict: `refused`, `right`, or the kind of finding.
        line: the last line of the message.
    """

    number: int
    kind: str
    command: str
    change: str
    code: int | None
    verdict: str
    line: str = ""


def run_case(number: int, seed: int, shared: Path, whole: Path, folder: Path, only: str | None = None) -> Found:
    """Damage one file and read it.

    Args:
        number: of the case.
        seed: of the campaign.
        shared: files that all cases have in common.
        whole: undamaged files by kind.
        folder: empty, for the case alone.
        only: name of the kinds to choose from; all by default.
    """
    random = np.random.default_rng([seed, number])
    kinds = [kind for kind in KINDS if only is None or only.lower() in kind.name.lower()]
    kind = kinds[number % len(kinds)]
    names = list(kind.commands)
    weights = np.array([_RARE if name in _SLOW else 1.0 for name in names])
    command = names[int(random.choice(len(names), p=weights / weights.sum()))]
    place, out = folder / "in" / kind.file, folder / "out"
    place.parent.mkdir()
    out.mkdir()
    (folder / "victim").mkdir()
    (folder / "victim" / "a.txt").write_text("precious")
    source = whole / kind.name / kind.file
    shutil.copytree(source, place, symlinks=True) if source.is_dir() else shutil.copy(source, place)
    change = damage(place, kind.parts, random)
    _name_victim(place, folder / "victim")
    before = _state(folder, place, kind)
    names_in_line = {"FILE": str(place), "SHARED": str(shared), "OUT": str(out / "out")}
    words = [_filled(word, names_in_line) for word in kind.commands[command]]
    code, lines = _call(words)
    line = lines[-1] if lines else ""
    after = _state(folder, place, kind)
    verdict = _judge(kind, command, place, out, code, lines, change)
    if before != after:
        verdict = "written elsewhere: " + ", ".join(sorted(set(before.items()) ^ set(after.items()), key=str)[0])
    return Found(number, kind.name, command, change, code, verdict, line)


def _name_victim(place: Path, victim: Path) -> None:
    """Put the path of a folder that must stay as it is where a change has put its mark."""
    for file in [place] if place.is_file() else place.rglob("*"):
        if file.is_file() and not file.is_symlink() and b"VICTIM" in (data := file.read_bytes()):
            file.write_bytes(data.replace(b"VICTIM", str(victim).encode()))


def _filled(word: str, names: dict[str, str]) -> str:
    for name, path in names.items():
        if word == name or word.startswith((f"{name}/", f"{name}.", f"{name}:")):
            return path + word[len(name) :]
    return word


def _state(folder: Path, place: Path, kind: Kind) -> dict[str, str]:
    """Digests of all files but the output; a store that is being continued is itself the output."""
    skipped = [folder / "out"] + ([place] if kind.name.startswith("store") else [])
    found = {}
    for path, _, names in os.walk(folder):
        if any(Path(path).is_relative_to(one) for one in skipped):
            continue
        for name in names:
            file = Path(path) / name
            if file in skipped or re.fullmatch(r"\..*\.lock", name) or name == f"{skipped[-1].name}.run.json":
                continue
            is_plain = file.is_file() and not file.is_symlink()
            found[str(file)] = hashlib.md5(file.read_bytes()).hexdigest() if is_plain else "link"
    return found


def _call(words: list[str]) -> tuple[int, list[str]]:
    """Run a command line in this process."""
    from distill.cli import command

    out, err, code = io.StringIO(), io.StringIO(), 0
    typed, sys.argv = sys.argv, ["distill", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command()
            except SystemExit as done:
                code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
            except BaseException:  # noqa: BLE001 - a traceback is the finding
                code = 1
                traceback.print_exc()
    finally:
        sys.argv = typed
    return code, [line for line in err.getvalue().splitlines() if line.strip()]


def _judge(kind: Kind, command: str, place: Path, out: Path, code: int, lines: list[str], change: str) -> str:
    line = lines[-1] if lines else ""
    if any(text.startswith("Traceback") for text in lines):
        return "traceback: " + line[:90]
    if code == 2:
        said = [text for text in lines if text.startswith("distill: ")]
        if len(said) != 1 or said[0] != line:
            return "not one line"
        if place.name not in line and place.name.split(".")[0] + "." not in line:
            return "names no file"
        if (own := _OURS.search(line)) is not None:
            return f"words of a library: {own[0][:40]}"
        return "refused"
    if code != 0:
        return f"exit code {code}"
    if command == "copy" and kind.values is not None:
        return _compare(kind, out, lines, change)
    return "right"


def _compare(kind: Kind, out: Path, lines: list[str], change: str) -> str:
    """Whether a copy holds the numbers of the undamaged file, or says what it lacks."""
    from distill.io.volume import open_volume

    found = open_volume(out / "out.zarr", missing="zero").read()
    expected = kind.values
    if found.shape != expected.shape:
        return "right"  # by what the file now says of itself
    if np.array_equal(found, expected):
        return "right"
    said = any(text.startswith(("note: ", "warning: ")) for text in lines)
    zeros = np.mean((found == 0) & (expected != 0))
    if zeros > _ZEROS and not said and not (kind.weak and change.endswith(("zero", "swap"))):
        return f"zeros in place of data ({100 * zeros:.0f} %)"
    return "right" if kind.weak or said else "other numbers"


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write the undamaged files and what all cases have in common."""
    shared, whole = folder / "shared", folder / "whole"
    shared.mkdir(parents=True)
    whole.mkdir()
    make_shared(shared)
    raw, model = str(shared / "raw.h5"), str(shared / "model.safetensors")
    for words in (
        ["stream", raw, "--model", model, "--out", str(shared / "stream.zarr"), *EXACT],
        ["segment", raw, "--model", model, "--out", str(shared / "blocks.zarr"), "--block", "4,32,32", *EXACT],
    ):
        code, lines = _call(words)
        assert code == 0, lines
    for kind in KINDS:
        made = whole / kind.name / kind.file
        made.parent.mkdir()
        kind.make(made, shared)
    return shared, whole


def work(folder: Path, seed: int, only: str | None) -> None:
    """Run the cases whose numbers come in, one a line, and print what each led to."""
    shared, whole = folder / "shared", folder / "whole"
    import torch

    import distill.inference.streaming.stream  # noqa: F401 - loaded before memory is limited

    torch.set_num_threads(1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY, taken + _MEMORY))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        number = int(line)
        case = Path(tempfile.mkdtemp(prefix=f"case{number}_", dir=folder))
        try:
            found = run_case(number, seed, shared, whole, case, only)
        except Exception as error:  # noqa: BLE001 - of the campaign itself
            found = Found(number, "?", "?", "?", None, f"campaign: {type(error).__name__}: {error}")
        if found.verdict in ("refused", "right"):
            shutil.rmtree(case, ignore_errors=True)
        answers.write(json.dumps(asdict(found)) + "\n")


class Worker:
    """A process that runs cases one by one, and is replaced where it dies or hangs."""

    def __init__(self, folder: Path, seed: int, only: str | None) -> None:
        self._words = [sys.executable, __file__, "--work", str(folder), "--seed", str(seed)]
        self._words += ["--kind", only] if only else []
        self._log = folder / "worker.log"
        self._process: subprocess.Popen[str] | None = None

    def ask(self, number: int) -> Found:
        """Run one case."""
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with self._log.open("a") as log:
                pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                self._process = subprocess.Popen(self._words, text=True, bufsize=1, env=environment, **pipes)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE)
        line = process.stdout.readline() if ready else ""
        if line:
            return Found(**json.loads(line))
        verdict = "hang" if not ready else f"crash: signal {-(process.wait() or 0)}"
        self.close()
        return Found(number, "?", "?", "?", None, verdict)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def campaign(folder: Path, seed: int, numbers: range, only: str | None = None) -> list[Found]:
    """Run cases, with the undamaged files made first.

    Args:
        folder: for all files; those of findings stay.
        seed: of the campaign.
        numbers: of the cases.
        only: name of the kinds to choose from.
    """
    prepare(folder)
    worker = Worker(folder, seed, only)
    try:
        return [worker.ask(number) for number in numbers]
    finally:
        worker.close()


def table(found: list[Found]) -> str:
    """Counts by kind of file and command."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for one in found:
        verdict = one.verdict if one.verdict in ("refused", "right") else "findings"
        rows.setdefault((one.kind, one.command), Counter())[verdict] += 1
    lines = ["| file | command | cases | refused | right | findings |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for (kind, command), counts in sorted(rows.items()):
        numbers = " | ".join(str(counts[name]) for name in ("refused", "right", "findings"))
        lines.append(f"| {kind} | {command} | {sum(counts.values())} | {numbers} |")
    return "\n".join(lines)


def main() -> int:
    """Run a campaign; exit code 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", type=int, help="number of a case to repeat")
    parser.add_argument("--kind", help="of file, or part of its name")
    parser.add_argument("--messages", action="store_true", help="print what was said about refused files")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help="folder for the files; default a temporary one")
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.seed, given.kind)
        return 0
    folder = given.keep or Path(tempfile.mkdtemp(prefix="fuzz_"))
    numbers = range(given.count) if given.only is None else range(given.only, given.only + 1)
    began = time.perf_counter()
    found = campaign(folder, given.seed, numbers, given.kind)
    bad = [one for one in found if one.verdict not in ("refused", "right")]
    for one in bad if given.only is None else found:
        print(f"{one.number}: {one.kind}, {one.command}, {one.change}: {one.verdict}\n    {one.line[:300]}")
    if given.messages:
        print("\n".join(sorted({re.sub(r"\S*/case\d+\w*/", "", one.line)[:200] for one in found if one.code == 2})))
    print(table(found))
    print(f"{len(found)} cases in {time.perf_counter() - began:.0f} s, {len(bad)} findings; files in {folder}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
