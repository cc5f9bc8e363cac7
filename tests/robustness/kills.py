"""Kill `distill stream`, `segment` and `train` with SIGKILL at random moments, resume with other settings, and compare.

The result must be that of an unbroken run with the last settings, byte by byte (of a training: weights and log).

    python tests/robustness/kills.py stream segment segment2 train --seed 0 --count 20
    python tests/robustness/kills.py stream segment --precision int8 --backend openvino --model ac4 --source CROP.h5

Converted networks are kept in a cache that begins empty; a process may be killed while it writes there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "configs" / "phantom_cpu"
COMMANDS = ("stream", "segment", "segment2", "train")
MERGES = ("0.2", "0.5", "0.9")
_PICTURES = (".png", ".svg", ".html")
TRAINING = (
    *("student.training.steps=8", "student.training.save_every=2", "student.training.log_every=3"),
    *("student.training.validate_every=5", "student.training.batch=2", "student.training.workers=0"),
)


def command_line(words: Sequence[str], environment: dict[str, str], said: str) -> None:
    """Run `distill WORDS` in this process, its output in a file."""
    import torch

    from distill.cli import main

    os.setsid()
    torch.set_num_threads(1)
    with Path(said).open("w") as file, mock.patch.dict(os.environ, environment):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv = ["distill", *words]
        with mock.patch("viz.report.report.report_after_training"):  # figures are no part of this
            main()


@dataclass
class Case:
    """One command over one small source.

    Attributes:
        command: one of `COMMANDS`.
        source: phantom.
        model: trained student; of no use to `train`.
        folder: for outputs.
        words: further words of a training that make its networks tiny.
        computing: words for precision and backend of a stream or segmentation.
    """

    command: str
    source: Path
    model: Path
    folder: Path
    words: tuple[str, ...] = ()
    computing: tuple[str, ...] = ()
    killed: list[float] = field(default_factory=list)  # seconds after the start

    def typed(self, out: Path, merge: str) -> list[str]:
        """The words of the command line."""
        if self.command == "train":
            resume = ["--resume"] if (out / "checkpoints" / "state.pt").exists() else []
            pair = [str(CONFIGS / "teacher.yaml"), str(CONFIGS / "student.yaml")]
            return ["train", *pair, *self.words, *TRAINING, "--device", "cpu", "--out", str(out), *resume]
        name = "stream" if self.command == "stream" else "segment"
        more = ["--block", "4,48,48"] if name == "segment" else []
        more += ["--workers", "2"] if self.command == "segment2" else []
        fixed = ["--model", str(self.model), "--out", str(out), "--resume", "--merge", merge]
        return [name, f"{self.source}:volumes/raw", *fixed, "--device", "cpu", *self.computing, *more]

    def run(self, out: Path, merge: str, kill_after: float | None = None) -> tuple[int | None, float]:
        """Run the command, and kill it after so many seconds where it still runs.

        Returns:
            Exit code, negative for a signal, and how long it ran.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["distill.training.train", "distill.inference.blockwise.segment", "distill.cli"])
        said = str(self.folder / "said.txt")
        given = (
            self.typed(out, merge),
            {"PHANTOM": str(self.source), "DISTILL_CACHE": str(self.folder.parent / "cache")},
            said,
        )
        process = context.Process(target=command_line, args=given)
        began = time.monotonic()
        process.start()
        assert process.pid is not None
        process.join(kill_after)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return process.exitcode, time.monotonic() - began

    def finished(self, out: Path, merge: str) -> float:
        """Run to the end; how long it took."""
        code, seconds = self.run(out, merge)
        assert code == 0, (self.folder / "said.txt").read_text()
        return seconds


def contents(out: Path) -> dict[str, bytes]:
    """All files of a result by path, without times, and without the settings that it was begun with."""
    found = {}
    for path in sorted(out.rglob("*")):
        if not path.is_file() or path.name in ("job.json", "run.json", "state.pt") or path.suffix in _PICTURES:
            continue
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            times = ("time", "seconds", "waited", "validation_seconds", "parts")
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{k: v for k, v in row.items() if k not in times} for row in rows]).encode()
        found[path.relative_to(out).as_posix()] = data
    return found


def check(case: Case, seed: int, count: int) -> str:
    """Kill a command `count` times, let it end, and compare; a result that ends before is compared and begun again.

    Returns:
        A row of a table.

    Raises:
        AssertionError: a result differs, or a process that follows a killed one is refused.
    """
    rng, wanted, seconds = random.Random(seed), {}, 0.0
    merges = MERGES if case.command != "train" else MERGES[:1]
    for merge in merges:
        whole = case.folder / f"whole-{merge}"
        seconds = case.finished(whole, merge)  # of the last, whose process begins with everything imported
        wanted[merge] = contents(whole)
    out, ends = case.folder / "killed", 0
    while len(case.killed) < count:
        merge = rng.choice(merges)
        code, ran = case.run(out, merge, rng.uniform(0.05, seconds))
        said = (case.folder / "said.txt").read_text()
        assert code in (0, -signal.SIGKILL), f"seed {seed}: exit {code}: {said}"
        if code == 0:
            ends += 1
            compare(out, wanted[merge], f"seed {seed}: kills after {case.killed} s")
            shutil.rmtree(out)
        else:
            case.killed.append(round(ran, 2))
    last = rng.choice(merges)
    case.finished(out, last)
    compare(out, wanted[last], f"seed {seed}: kills after {case.killed} s")
    left = sorted(path.name for path in case.folder.iterdir() if path.name.startswith((".killed", "killed.")))
    assert [name for name in left if not name.endswith(".run.json")] == [], left
    return f"| {case.command} | {seed} | {count} | {ends + 1} | {seconds:.1f} s | same |"


def compare(out: Path, wanted: dict[str, bytes], when: str) -> None:
    """Check that a result is that of an unbroken run, file by file."""
    found = contents(out)
    different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    assert not different, f"{when}: {different[:5]} differ"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Kill what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="+", choices=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--model", type=Path, help="run folder of a small student; trained where none is given")
    parser.add_argument("--precision", default="32-true", help="of stream and segment")
    parser.add_argument("--backend", default="eager", help="of stream and segment")
    parser.add_argument(
        "--source", type=Path, help="small volume of stream and segment, volumes/raw; default: a phantom"
    )
    parser.add_argument("--words", nargs="*", default=[], help="words of `distill train` that make the networks small")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phantom = folder / "phantom.h5"
        first = Case("stream", phantom, given.model or folder / "model", folder, tuple(given.words))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["distill.training.train", "distill.inference.blockwise.segment", "distill.cli"])
        words = ["phantom", str(phantom), "--shape", "20,96,96", "--seed", "3"]
        made = context.Process(target=command_line, args=(words, {}, str(folder / "said.txt")))
        made.start()
        made.join()
        if given.model is None:
            Case("train", phantom, folder, folder, tuple(given.words)).finished(first.model, MERGES[0])
        say("| command | seed | kills | results | unbroken run | compared |\n| --- | --- | --- | --- | --- | --- |")
        for command in given.commands:
            own = folder / command
            own.mkdir()
            computing = ("--precision", given.precision, "--backend", given.backend)
            source = phantom if command == "train" or given.source is None else given.source.absolute()
            say(check(Case(command, source, first.model, own, first.words, computing), given.seed, given.count))


if __name__ == "__main__":
    main()
