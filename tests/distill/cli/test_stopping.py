"""Signals end commands: the first one in order, a second one at once; what to type next is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.cli import app
from distill.cli.stopping import continuing

START = """
import hashlib, os, signal, sys
import distill.core.signals
distill.core.signals.TOGETHER = float(sys.argv[1])
for number in distill.core.signals.SIGNALS:  # a shell's background processes ignore one of them
    signal.signal(number, signal.default_int_handler)
from distill.cli.stopping import leaving_at_once, signals_end_the_command
"""
STUBBORN = (
    START
    + """
with signals_end_the_command():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        print("not stopped")
    except KeyboardInterrupt:
        print("stopping", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        if sys.argv[1] == "0":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in a library that looks at no signal
print("went on")
"""
)
COMPUTING = (
    START
    + """
with signals_end_the_command():
    print("computing", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
)
LEAVING = (
    START
    + """
import atexit, threading
class Slow:
    def __del__(self):
        print("freed")
sys.kept = Slow()
with leaving_at_once():
    atexit.register(lambda: print("exit function"))
    threading.Timer(0.1, lambda: print("thread")).start()
    sys.exit(int(sys.argv[1]))
"""
)


def program(text: str, *words: str) -> list[str]:
    return [sys.executable, "-c", text, *words]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("/bin/distill|train|a b.yaml|s.yaml|--out|run", "distill train 'a b.yaml' s.yaml --out run --resume"),
        ("distill|train|t.yaml|s.yaml|--resume|--out|run", "distill train t.yaml s.yaml --out run --resume"),
        ("distill|stream|x|--overwrite|--model|ac4|--out|o.zarr", "distill stream x --model ac4 --out o.zarr --resume"),
        ("/x/distill/__main__.py|segment|x|--out|o", "python -m distill segment x --out o --resume"),
        ("distill|data|get|cremi|--out|my data", "distill data get cremi --out 'my data'"),
        ("distill|phantom|o.h5|--seed|3", "distill phantom o.h5 --seed 3"),
        ("distill|copy|a|b|--overwrite", "distill copy a b --overwrite"),
        ("distill", "distill"),
    ],
)
def test_the_command_that_continues(typed: str, line: str) -> None:
    assert continuing(app, typed.split("|")) == line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_and_what_to_type_is_printed(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def never(*given: object, **words: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    before = [signal.default_int_handler, signal.SIG_DFL]  # a shell's background processes ignore the first
    usual = [signal.signal(one, handler) for one, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True)]
    monkeypatch.setattr("distill.data.phantom.make_phantom", never)
    said = cli("phantom", tmp_path / "a b.h5")
    found = [signal.signal(one, was) for one, was in zip((signal.SIGINT, signal.SIGTERM), usual, strict=True)]
    assert said.code == 130
    assert said.err.splitlines() == [f"continue with: distill phantom '{tmp_path}/a b.h5'", "distill: interrupted"]
    assert found == before


def test_a_second_signal_ends_the_process_at_once() -> None:
    said = subprocess.run(program(STUBBORN, "0"), capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stdout) == (-signal.SIGINT, "stopping\n"), said.stderr


def test_a_second_signal_ends_a_process_that_computes_in_a_library() -> None:
    with subprocess.Popen(program(COMPUTING, "0"), stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "computing\n"
            running.send_signal(signal.SIGTERM)
            running.send_signal(signal.SIGINT)
            assert running.wait(300) in (-signal.SIGINT, -signal.SIGTERM)
        finally:
            running.kill()


def test_signals_that_arrive_together_end_it_in_order() -> None:
    said = subprocess.run(program(STUBBORN, "600"), capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stdout) == (0, "stopping\nwent on\n"), said.stderr


@pytest.mark.parametrize("variable", ["2", "16"])
def test_one_of_many_ranks_is_never_ended_at_once(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", variable)
    quick = STUBBORN.replace("2**31 - 1", "1")
    said = subprocess.run(program(quick, "0"), capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stdout) == (0, "stopping\nwent on\n"), said.stderr


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_process_ends_without_freeing_what_it_holds(code: int) -> None:
    """Output, threads and exit functions come first."""
    said = subprocess.run(program(LEAVING, str(code)), capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stdout.splitlines()) == (code, ["thread", "exit function"]), said.stderr


def test_an_error_keeps_its_traceback_and_code() -> None:
    text = LEAVING.replace("sys.exit(int(sys.argv[1]))", "1 / 0")
    said = subprocess.run(program(text, "0"), capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stdout.splitlines()) == (1, ["thread", "exit function"])
    assert said.stderr.strip().endswith("ZeroDivisionError: division by zero")


def test_a_reader_that_has_gone_away_is_told_as_ever() -> None:
    gone, kept = os.pipe()
    os.close(gone)
    text = START + "with leaving_at_once():\n    print('x')\n"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    said = subprocess.run(program(text, "0"), stdout=kept, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(kept)
    assert said.returncode == 120
    assert "BrokenPipeError" in said.stderr
