"""Which precision a device gets: flags, oneDNN's limit, timing, and that nothing else decides."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distill.config import TrainingConfig
from distill.core import hardware
from distill.core.errors import DistillError
from distill.core.hardware import check_precision, choose, computing, resolved
from distill.inference.options import Options, Runtime

CPU = torch.device("cpu")
REPO = Path(__file__).resolve().parents[3]
ABLE = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False, "avx_ne_convert": False}
UNABLE = ABLE | {"avx512_bf16": False}


def pretend(monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], times: tuple[float, float] = (9.0, 99.0)) -> None:
    """Give this process another processor."""
    monkeypatch.setattr(hardware, "_flags", lambda: flags)
    monkeypatch.setattr(hardware, "slowdown", lambda device: times)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flags", "limit", "wanted"),
    [
        (ABLE, None, True),
        (UNABLE, None, False),
        (UNABLE | {"amx_bf16": True}, None, True),
        (ABLE | {"amx_bf16": True}, None, True),
        (ABLE, "AVX2", False),
        (ABLE, "AVX512_CORE_VNNI", False),
        (ABLE, "AVX512_CORE_BF16", True),
        (ABLE, "AVX2_VNNI_2", None),
        (UNABLE | {"avx_ne_convert": True}, None, None),
        ({"architecture": "aarch64", "arm_bf16": True}, None, None),
        ({}, None, None),
    ],
)
def test_flags_decide_or_leave_it_open(flags: dict[str, Any], limit: str | None, wanted: bool | None) -> None:
    assert hardware._by_flags(flags, limit) is wanted


@pytest.mark.parametrize(
    ("flags", "times", "wanted"),
    [
        (ABLE, (9.0, 9.0), "bf16-mixed"),  # not timed: the flags suffice
        (UNABLE, (0.1, 0.1), "32-true"),
        ({}, (0.5, 0.5), "bf16-mixed"),
        ({}, (0.95, 0.5), "32-true"),  # hardly faster
        ({}, (0.5, 1.5), "32-true"),  # matrix products are slower
    ],
)
def test_auto_is_what_the_processor_does_fast(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], times: tuple[float, float], wanted: str
) -> None:
    pretend(monkeypatch, flags, times)
    chosen = choose("auto", CPU)
    assert (chosen.precision, chosen.reason, chosen.warning) == (wanted, "auto", None)
    assert resolved("auto", CPU) == Runtime(CPU).precision == wanted
    with computing(CPU, "auto"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.float32) is (wanted == "32-true")


def test_the_first_line_and_the_cost_of_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, UNABLE, (17.25, 123.4))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose("auto", CPU).line == "device cpu (AVX2, no bfloat16), precision 32-true (auto)"
    asked = choose("bf16-mixed", CPU)
    assert asked.line == "device cpu (AVX2, no bfloat16), precision bf16-mixed (as asked for)"
    assert asked.warning is not None
    assert "a convolution takes 17.2 times as long as in float32, a matrix product 123 times" in asked.warning
    kept = choose("auto", CPU, begun="bf16-mixed")
    assert (kept.precision, kept.reason, kept.warning) == ("bf16-mixed", "as the run began", asked.warning)
    assert choose("32-true", CPU, begun="bf16-mixed").precision == "32-true"
    pretend(monkeypatch, ABLE)
    able = choose("bf16-mixed", CPU)
    assert (able.warning, able.device) == (None, "cpu (AVX2, bfloat16)")
    assert able.record() == {
        "hardware": "cpu (AVX2, bfloat16)",
        "precision": "bf16-mixed",
        "precision_by": "as asked for",
    }


def test_a_gpu_without_native_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode())
    assert resolved("auto", torch.device("cuda", 1)) == "32-true"
    assert asked == [False]


def test_unknown_names_are_refused_in_one_place() -> None:
    assert [check_precision(name) for name in hardware.PRECISIONS] == ["auto", "32-true", "bf16-mixed", "int8"]
    with pytest.raises(DistillError, match=r"^--precision: found 'fp8', expected auto, 32-true, bf16-mixed or int8$"):
        Runtime(CPU, "fp8")


def test_onnx_runtime_has_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ABLE)
    assert Runtime(CPU, backend="onnxruntime").precision == "32-true"


def test_auto_takes_eager_where_openvino_would_not_keep_to_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, flags in {"able": ABLE, "unable": UNABLE}.items():
        pretend(monkeypatch, flags)
        found[name] = [Runtime(CPU, precision, "auto").backend for precision in ("32-true", "bf16-mixed")]
    assert found == {"able": ["openvino", "openvino"], "unable": ["openvino", "eager"]}


def test_both_factors_are_measured_once() -> None:
    hardware.slowdown.cache_clear()
    convolution, product = hardware.slowdown(CPU)
    assert convolution > 0
    assert product > 0
    assert hardware.slowdown(CPU) == (convolution, product)  # not measured again
    assert hardware.slowdown.cache_info().misses == 1


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_the_limit_of_onednn_is_honoured(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    pretend(monkeypatch, ABLE)
    for limit, wanted in (("avx2", "32-true"), ("DEFAULT", "bf16-mixed"), ("AVX512_CORE_BF16", "bf16-mixed")):
        monkeypatch.setenv(variable, limit)
        assert choose("auto", CPU).precision == wanted


def test_the_limit_of_onednn_switches_a_process() -> None:
    """In a process of its own whose processor has bfloat16, whatever this machine's has."""
    program = (
        f"import torch; from distill.core import hardware; hardware._flags = lambda: {ABLE!r}; "
        "print(hardware.choose('auto', torch.device('cpu')).line)"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("no bfloat16, oneDNN limited to AVX2), precision 32-true (auto)")


def test_amx_is_avoided_where_it_is_and_the_user_has_set_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ABLE)
    assert not hardware.avoid_amx()
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ
    pretend(monkeypatch, ABLE | {"amx_bf16": True})
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert not hardware.avoid_amx()
    monkeypatch.delenv("DNNL_MAX_CPU_ISA")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")  # so that what is set now is undone
    assert hardware.avoid_amx()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    assert choose("auto", CPU).precision == "bf16-mixed"
    assert not hardware.avoid_amx()


@pytest.mark.parametrize(
    ("flags", "limit", "wanted"),
    [
        (ABLE, "", "bf16-mixed"),
        (ABLE | {"amx_bf16": True}, "", "32-true"),
        (ABLE | {"amx_bf16": True}, "AVX512_CORE_AMX", "32-true"),
        (ABLE | {"amx_bf16": True}, "AVX512_CORE_BF16", "bf16-mixed"),
    ],
)
def test_a_3d_network_runs_in_float32_on_amx(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], limit: str, wanted: str
) -> None:
    pretend(monkeypatch, flags)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert hardware.volume_precision(CPU, "bf16-mixed") == wanted
    assert hardware.volume_precision(CPU, "32-true") == "32-true"
    assert hardware.volume_precision(torch.device("meta"), "bf16-mixed") == "bf16-mixed"


def test_a_training_process_survives_the_gradient_that_amx_gets_wrong() -> None:
    """A 3D convolution without padding in bfloat16, as the teacher has; on a CPU with AMX it ends the process."""
    program = """
import torch
from lightning_fabric import Fabric
from distill.training.launch import launch
from distill.training.ranks import Ranks
fabric = launch("cpu", "bf16-mixed", Ranks())
layer = torch.nn.Conv3d(16, 16, 3).to(memory_format=torch.channels_last_3d)
module, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
for _ in range(4):
    fabric.backward(module(torch.rand(1, 16, 5, 130, 130)).square().mean())
    kept = [bytearray(length) for length in range(16, 4000, 16)]
print("done")
"""
    environment = {name: value for name, value in os.environ.items() if name not in hardware._LIMITS}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_auto_is_the_default_everywhere() -> None:
    assert (TrainingConfig().precision, Options().precision) == ("auto", "auto")
    written = {
        path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8")).get("training", {}).get("precision", "auto")
        for path in (REPO / "configs").glob("*/student.yaml")
    }
    assert {name for name, precision in written.items() if precision != "auto"} <= {"paper"}  # as published
    assert len(written) > 4


def test_no_other_module_names_the_type() -> None:
    """But a backend's own library type, and precision names are not written out a second time."""
    named = re.compile(r"\bbfloat16|\bbf16|\"32-true\"")
    allowed = {
        "distill/core/hardware.py": None,
        "distill/python/models.py": r">>> distill\.load\(.*\)",  # an example of use
        "students/backends/openvino.py": r"Type\.bf16|\"BF16\"|\"bf16\" if",
    }
    wrong = []
    for package in ("distill", "students", "teachers", "viz"):
        for path in sorted((REPO / package).rglob("*.py")):
            name = path.relative_to(REPO).as_posix()
            if name in allowed and allowed[name] is None:
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                left = re.sub(allowed.get(name) or r"$^", "", line)
                if named.search(left):
                    wrong.append(f"{name}:{number}: {line.strip()}")
    assert wrong == []
