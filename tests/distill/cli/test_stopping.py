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

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
from distill.cli.stopping import signals_end_the_command
with signals_end_the_command():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopping", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
print("went on")
"""


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
    said = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True, timeout=120)
    assert (said.returncode, said.stdout) == (-signal.SIGINT, "stopping\n"), said.stderr
