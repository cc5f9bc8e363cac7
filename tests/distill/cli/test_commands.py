"""The job that runs every command once more with AVX-512 and bfloat16 switched off: nothing is left out, all is off."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from typer.main import get_command

from distill.core.hardware import has_bfloat16

SWITCHED_OFF = os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" and os.environ.get("ATEN_CPU_CAPABILITY") == "avx2"
needs_limit = pytest.mark.skipif(
    not SWITCHED_OFF, reason="ONEDNN_MAX_CPU_ISA=AVX2 and ATEN_CPU_CAPABILITY=avx2 not set"
)


def names(command: Any, before: str = "") -> set[str]:
    """Names of all commands, those of groups with the group's name before them."""
    found = set()
    for name, one in command.commands.items():
        found |= names(one, f"{before}{name} ") if hasattr(one, "commands") else {before + name}
    return found


@pytest.mark.commands
def test_every_command_has_a_test(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("-m") != "commands":
        pytest.skip("counts the tests that `-m commands` selects")
    from distill.cli import app

    marks = [mark for item in request.session.items for mark in item.iter_markers("commands")]
    assert {name for mark in marks for name in mark.args} == names(get_command(app))


@needs_limit
@pytest.mark.commands
def test_torch_has_no_more_than_avx2(capfd: pytest.CaptureFixture[str]) -> None:
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert not has_bfloat16(torch.device("cpu"))
    maps, weight = torch.rand(4, 32, 64, 64), torch.rand(32, 32, 3, 3)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.conv2d(maps, weight)
    used = [line for line in capfd.readouterr().out.splitlines() if "exec,cpu,convolution" in line]
    assert len(used) == 1
    assert "avx2" in used[0]


@needs_limit
@pytest.mark.commands
def test_openvino_has_no_more_than_avx2() -> None:
    openvino = pytest.importorskip("openvino")
    operations = openvino.opset13
    given = operations.parameter([1, 16, 32, 32], np.float32)
    weight = operations.constant(np.ones((16, 16, 3, 3), np.float32))
    layer = operations.convolution(given, weight, [1, 1], [1, 1], [1, 1], [1, 1])
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}  # the default is bfloat16 on a CPU with AMX
    compiled = openvino.Core().compile_model(openvino.Model([layer], [given]), "CPU", hints)
    about = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    used = [one["primitiveType"].astype(str) for one in about if one["layerType"].astype(str) == "Convolution"]
    assert len(used) == 1
    assert "avx2" in used[0]


RUN = {"--precision", "--normalise", "--missing"}
CHOICES = {
    "stream SOURCE": RUN | {"--backend", "--method", "--embedding"},
    "segment SOURCE": RUN | {"--backend", "--method", "--network"},
    "evaluate SEGMENTATION": {"--preset", "--skeleton-units", "--missing"},
    "sweep AFFINITY LABELS": RUN | {"--preset"},
    "export MODEL": {"--format", "--precision"},
    "copy SOURCE TARGET": {"--format", "--missing"},
    "report RUN": {"--preset", "--precision"},
}


@pytest.mark.parametrize("words", CHOICES)
def test_closed_sets_are_choices(cli: Any, words: str) -> None:
    """`--help` lists the values, and a wrong one ends with exit code 2 and lists them as well."""
    command, *given = words.split()
    listed = dict(re.findall(r"(--[a-z-]+) <([a-z0-9-]+(?:\|[a-z0-9-]+)+)>", cli(command, "--help").out))
    assert listed.keys() == CHOICES[words]
    for option, values in listed.items():
        said = cli(command, *given, option, "no-such")
        assert said.code == 2
        expected = ", ".join(map(repr, values.split("|")))
        assert said.err == f"distill: Invalid value for '{option}': 'no-such' is not one of {expected}.\n"


def test_options_of_groups_are_options_of_the_command() -> None:
    from distill.cli import app
    from distill.cli.arguments import FollowArguments, RunArguments, StreamArguments

    command = get_command(app).commands["stream"]  # type: ignore[attr-defined]
    defaults = {one.name: one.default for one in command.params}
    for group in (RunArguments(), StreamArguments(), FollowArguments()):
        assert {name: defaults[name] for name in vars(group)} == vars(group)


def test_help_names_no_method_that_a_command_lacks() -> None:
    from typing import get_args

    from distill.cli import app
    from distill.core.choices import Method, StreamMethod

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, own in (("stream", StreamMethod), ("finish", StreamMethod), ("segment", Method)):
        others = set(get_args(Method)) - set(get_args(own))
        text = " ".join([commands[name].help or "", *(getattr(one, "help", "") or "" for one in commands[name].params)])
        assert not others & set(re.findall(r"\w+", text)), name
        assert "merge objects whose contact exceeds this mean affinity" in text
