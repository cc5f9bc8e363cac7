"""Install packages with pip and show the progress: `python tools/install.py [PIP'S ARGUMENTS]`.

pip itself names every file and then says nothing for minutes while it unpacks. Here a line every ten seconds counts the
packages. Errors appear as they come; of warnings that differ in a quoted name alone, the first. All that pip prints is
in `install.log` at the top of the environment.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import IO, TextIO

EVERY = 10.0  # seconds between two lines
LARGE = 20.0  # MB of a file that is named by itself
_FILE = re.compile(r"(?:Downloading|Using cached) (?:\S*/)?(\S+?)-(\d\S*?)-\S+ \(([\d.]+) ([kMG])B\)")
_QUOTED = re.compile(r"'[^']*'")
_MEGABYTES = {"k": 1e-3, "M": 1.0, "G": 1e3}

Line = tuple[bool, str]  # whether it is of pip's errors, text


class Counter:
    """What pip has done so far, by its own lines and by the packages in a folder.

    Args:
        packages: the environment's site-packages.
    """

    def __init__(self, packages: Path) -> None:
        self.packages, self.before = packages, _installed(packages)
        self.found, self.megabytes, self.total = 0, 0.0, 0  # total: of packages to unpack, once pip has said it

    def take(self, line: str) -> str | None:
        """Count one line of pip's output; what is worth a line by itself."""
        text = line.strip()
        if text.startswith(("Collecting ", "Processing ")):  # by name, or a file of this machine
            self.found += 1
        elif match := _FILE.match(text):
            name, version, size = match[1], match[2], float(match[3]) * _MEGABYTES[match[4]]
            self.megabytes += size
            return f"{name} {version}, {size:.0f} MB" if size >= LARGE else None
        elif text.startswith("Installing collected packages: "):
            self.total = text.count(",") + 1
            return f"{self._fetched()}; unpacking {self.total}"
        return None

    def so_far(self) -> str:
        if not self.total:
            return self._fetched()
        done = min(self.total, len(_installed(self.packages) - self.before))
        return f"{done} of {self.total} packages unpacked"

    def _fetched(self) -> str:
        if not self.found:
            return "pip prepares"
        size = f", {self.megabytes:.0f} MB fetched" if self.megabytes else ""
        return f"{self.found} packages found{size}"


def install(command: Sequence[str], packages: Path, log: Path, out: TextIO, *, every: float = EVERY) -> int:
    """Run pip and show its progress.

    Args:
        command: pip's command line.
        packages: folder that pip installs into.
        log: file for everything that pip prints.
        out: where progress and pip's errors are shown.
        every: seconds between two lines of progress.

    Returns:
        pip's exit code.
    """
    began, counter = time.monotonic(), Counter(packages)
    seen, alike = set[str | None](), 0  # forms of warnings that were shown, and how many more there were of them
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    assert pip.stdout is not None
    assert pip.stderr is not None
    lines: Queue[Line | None] = Queue()
    for stream, is_error in ((pip.stdout, False), (pip.stderr, True)):
        threading.Thread(target=_forward, args=(stream, is_error, lines), daemon=True).start()

    def show(text: str) -> None:
        print(text, file=out, flush=True)

    running, due = 2, began + every
    with log.open("w", encoding="utf-8") as record:
        while running:
            try:
                line = lines.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                show(f"  {time.monotonic() - began:3.0f} s: {counter.so_far()}")
                due = time.monotonic() + every
                continue
            if line is None:
                running -= 1
                continue
            is_error, text = line
            record.write(text)
            if is_error:
                form = _QUOTED.sub("", text) if text.startswith("WARNING: ") else None
                alike += form in seen
                if form not in seen:
                    show(text.rstrip())
                    seen |= {form} - {None}
            elif (said := counter.take(text)) is not None:
                show(f"  {time.monotonic() - began:3.0f} s: {said}")
    code = pip.wait()
    if alike:
        show(f"  {alike} more warnings like those above are in the log")
    show(f"  {'done' if code == 0 else 'failed'} after {time.monotonic() - began:.0f} s; all that pip printed: {log}")
    return code


def _forward(stream: IO[str], is_error: bool, lines: Queue[Line | None]) -> None:
    with stream:
        for line in stream:
            lines.put((is_error, line))
    lines.put(None)


def _installed(packages: Path) -> set[str]:
    return {path.name for path in packages.glob("*.dist-info")}


def main() -> None:
    fixed = ("-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")
    print(f"installing into {sys.prefix}: some 150 packages, one to five minutes", flush=True)
    try:
        code = install(
            [sys.executable, *fixed, *sys.argv[1:]],
            Path(sysconfig.get_path("purelib")),
            Path(sys.prefix) / "install.log",
            sys.stdout,
        )
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


if __name__ == "__main__":
    main()
