"""Backends give what plain torch gives, however a stream is cut into calls."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from numpy.typing import NDArray
from second_device import second_device, to_tf32
from torch import nn

from distill.core.affinity import NEAREST
from distill.core.errors import DistillError
from distill.core.geometry import Triple
from students.backends.choose import compiles, make_backend, settled
from students.backends.functions import ExtraOutputs
from students.backends.fuse import fused
from students.backends.openvino import load_openvino
from students.backends.signal_stack import signal_stack
from students.backends.torch import TorchBackend
from students.slab_adapter import SlabAdapter
from students.streaming.runner import SectionOutput, SectionRunner
from students.student import Student

Build = Callable[..., Student]
CPU = torch.device("cpu")
OFFSETS: tuple[Triple, ...] = (*NEAREST, (-2, 1, -1), (0, 3, 2))
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")), reason="ONNX Runtime is not installed"
)


def runner(
    student: Student, backend: str, precision: str = "32-true", device: torch.device = CPU, *, slab: bool = True
) -> SectionRunner:
    torch.manual_seed(0)
    adapter = SlabAdapter(half=student.half_channels, full=student.full_channels, features=16).eval().to(device)
    return SectionRunner(
        student,
        adapter if slab else None,
        device=device,
        precision=precision,
        backend=backend,
        offsets=OFFSETS,
        embedding="float32",
    )


def sections(count: int = 4, height: int = 37, width: int = 45) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)


def agree(found: Sequence[SectionOutput], wanted: Sequence[SectionOutput], levels: int, tolerance: float) -> None:
    """Affinities within so many levels of uint8, embeddings within the tolerance, features within ten times that."""
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a.affinity.astype(int) - b.affinity).max() <= levels
        assert a.embedding is not None
        assert b.embedding is not None
        np.testing.assert_allclose(a.embedding, b.embedding, atol=tolerance)
        assert (a.joined is None) == (b.joined is None)
        if a.joined is not None and b.joined is not None:
            torch.testing.assert_close(a.joined.float().cpu(), b.joined.float(), rtol=0, atol=10 * tolerance)


def same(found: Sequence[SectionOutput], wanted: Sequence[SectionOutput]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.affinity, b.affinity)
        np.testing.assert_array_equal(a.embedding, b.embedding)


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        pytest.param("openvino", "cad", marks=needs_openvino),
        pytest.param("openvino", "tu-resnet10t", marks=needs_openvino),
        pytest.param("onnxruntime", "cad", marks=needs_onnx),
    ],
)
@pytest.mark.parametrize("size", [(37, 45), (96, 64), (192, 128)])
def test_another_backend_gives_what_torch_gives(student: Build, backend: str, name: str, size: tuple[int, int]) -> None:
    """Sizes that are padded, and multiples of every stride, which OpenVINO traces on smaller maps."""
    given = sections(3, *size)
    agree(runner(student(name), backend).push(given), runner(student(name), "eager").push(given), 1, 1e-4)


@needs_openvino
def test_bfloat16_stays_close_and_does_not_depend_on_the_calls(student: Build) -> None:
    given, network = sections(5), student("cad")
    whole, cut, primed = (runner(network, "openvino", "bf16-mixed", slab=False) for _ in range(3))
    wanted = whole.push(given)
    agree(wanted, runner(network, "eager", slab=False).push(given), 12, 0.1)
    same([*cut.push(given[:2]), *cut.push(given[2:3]), *cut.push(given[3:])], wanted)
    for section in given[1:3]:
        primed.prime(section)
    same(primed.push(given[3:]), wanted[3:])


@pytest.mark.parametrize("backend", ["eager", pytest.param("openvino", marks=[needs_openvino, pytest.mark.bf16])])
def test_kernels_that_nearly_cancel_keep_their_result_in_bfloat16(student: Build, backend: str) -> None:
    network = copy.deepcopy(student("cad"))
    first = network.get_submodule("inc.0")
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():  # differences of grey values, far below what bfloat16 leaves of either factor
        first.weight.copy_(1000 * (first.weight - first.weight.mean((2, 3), keepdim=True)))
    grey = (120 + sections() // 64).astype(np.uint8)
    exact, close = (
        np.stack([output.affinity for output in runner(network, "eager" if p == "32-true" else backend, p).push(grey)])
        for p in ("32-true", "bf16-mixed")
    )
    network.entry = None
    rough = np.stack([output.affinity for output in runner(network, backend, "bf16-mixed").push(grey)])
    ours, without = (float(np.abs(found.astype(int) - exact).mean()) for found in (close, rough))
    assert ours < without / 2


@needs_openvino
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_openvino_leaves_signals_alone(student: Build, precision: str) -> None:
    """It would leave an alternate stack that is gone when the next signal comes."""
    before, received = signal_stack(), []
    runner(student("cad"), "openvino", precision).push(sections(2))
    assert signal_stack() == before
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, handler)


@needs_openvino
def test_openvino_tiles_equal_its_whole_section(student: Build) -> None:
    network, given = student("cad"), sections(2, 20, 301)
    whole, tiled = (
        SectionRunner(
            network, None, device=CPU, precision="32-true", backend="openvino", tile=tile, embedding="float32"
        )
        for tile in (None, 40)
    )
    agree(tiled.push(given), whole.push(given), 1, 1e-4)


@needs_openvino
def test_a_signal_while_a_model_is_converted_is_not_lost(student: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion calls Python, and turns what is raised there into an error of its own."""
    ov = load_openvino()
    convert, handler = ov.convert_model, signal.signal(signal.SIGTERM, signal.default_int_handler)

    def converted(*given: object, **named: object) -> object:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return convert(*given, **named)
        except KeyboardInterrupt:
            raise RuntimeError("conversion failed") from None

    monkeypatch.setattr(ov, "convert_model", converted)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner(student("cad"), "openvino").push(sections(2))
    finally:
        signal.signal(signal.SIGTERM, handler)


@needs_openvino
def test_openvino_comes_without_its_usage_statistics() -> None:
    """In a process of its own, because another test may have imported OpenVINO itself."""
    script = (
        "import sys; from students.backends.openvino_models import load_openvino; load_openvino(); "
        "assert 'openvino' in sys.modules; assert sys.modules.get('openvino_telemetry') is None"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("cuts", [(1,), (3,), (1, 2, 3, 4), (2, 3)])
def test_a_step_has_one_size_however_many_sections_come(
    student: Build, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...]
) -> None:
    """As on a GPU, where a step is larger than a section."""
    given, network = sections(5), student("tu-resnet10t")
    one, other = (runner(network, "eager") for _ in range(2))
    for each in (one, other):
        monkeypatch.setattr(each, "batch", 4)
    places = [0, *cuts, 5]
    found = [out for a, b in itertools.pairwise(places) for out in one.push(given[a:b])]
    same(found, other.push(given))
    agree(found, runner(network, "eager").push(given), 1, 1e-5)


def test_large_sections_make_small_steps(student: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = runner(student("cad"), "eager")._mode
    monkeypatch.setattr(mode, "_batch", 8)
    assert [mode._step((side, side)) for side in (64, 1024, 2048, 4096, 40000)] == [8, 8, 2, 1, 1]


@pytest.mark.parametrize("name", ["cad", "tu-resnet10t", "resnet18", "tu-regnetx_002"])
def test_batch_norms_become_part_of_the_convolutions(student: Build, name: str) -> None:
    network = student(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = fused(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    grey = torch.rand(2, 1, 61, 83, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = found(grey[:1], grey[1:]), network(grey[:1], grey[1:])
    for part in ("previous", "current", "half", "full"):
        wanted = getattr(theirs, part)
        torch.testing.assert_close(getattr(ours, part), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_batch_norms_are_folded_on_a_device_that_rounds_convolutions(student: Build) -> None:
    """TF32 changes the results by more than the tolerance of the comparison with the original."""
    network = student("cad")
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = network.eval()(grey, grey).previous
    with second_device(rounding=to_tf32) as (device, _), torch.no_grad():
        there = copy.deepcopy(network).to(device)
        rounded = there(grey.to(device), grey.to(device)).previous.cpu()
        found = fused(there)
    assert float((rounded - exact).abs().max()) > 1e-4 * float(exact.abs().max())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())


def test_a_norm_that_does_not_follow_its_convolution_alone_stays(student: Build) -> None:
    """Here another layer reads the convolution's result too, so that folding would change it."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            nn.init.uniform_(self.norm.weight, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.conv(x)
            return self.norm(found) + found

    network = type(student("cad"))(width=4, embedding=5).eval()
    network.inc = nn.Sequential(Twice())
    assert any(isinstance(module, nn.BatchNorm2d) for module in fused(network.eval()).inc.modules())


def test_auto_takes_openvino_on_a_cpu_where_it_is_installed(student: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend() -> str:
        return make_backend("auto", student("cad"), None, ExtraOutputs(), device=CPU, precision="32-true").name

    found = importlib.util.find_spec
    assert backend() == ("openvino" if found("openvino") else "eager")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert backend() == "eager"


def test_auto_compiles_on_a_gpu_only_where_a_kernel_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools are there, but Python's headers may be missing."""
    there, tried = torch.device("cuda"), []

    def compiled(function: Callable[..., torch.Tensor], **given: object) -> Callable[..., torch.Tensor]:
        tried.append(given)
        if len(tried) == 1:
            raise RuntimeError("fatal error: Python.h: No such file or directory")
        return function

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(shutil, "which", lambda name: "cc")
    monkeypatch.setattr(torch, "compile", compiled)
    with second_device():
        assert [settled("auto", "32-true", there)[0] for _ in range(2)] == ["eager"] * 2
        assert len(tried) == 1
        compiles.cache_clear()
        assert settled("auto", "32-true", there)[0] == "compile"
    compiles.cache_clear()


def test_every_size_of_a_border_tile_is_compiled(student: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch stops after eight sizes of one module and continues without kernels; here graphs are counted, not built."""
    counter = torch._dynamo.testing.CompileCounter()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **given: compile_(module, **given, backend=counter))
    dynamo: Any = torch._dynamo.config
    before = dynamo.recompile_limit
    network = TorchBackend(student("cad").eval(), None, ExtraOutputs(), device=CPU, precision="32-true", compiled=True)
    for count in range(1, 12):
        size = 16 + 16 * count, 48
        maps = network.encode(torch.rand(1, 1, *size))
        network.decode(maps, maps, torch.ones(1, 1, 1, 1), size)
        assert counter.frame_count == 2 * count
    dynamo.recompile_limit = before
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look
def test_the_halves_of_a_student_are_one_graph_each(student: Build) -> None:
    """Their results are dataclasses, which compiled functions must be able to return."""
    counter = torch._dynamo.testing.CompileCounter()
    network = copy.deepcopy(student("cad")).train()
    encode, decode = (torch.compile(half, dynamic=False, backend=counter) for half in (network.encode, network.decode))
    maps, first = encode(torch.rand(3, 1, 32, 32)), torch.tensor([0, 1])
    pair = decode(maps.rows(first), maps.rows(first + 1))
    wanted = network.decode(network.encode(torch.rand(3, 1, 32, 32)).rows(first), maps.rows(first + 1))
    assert counter.frame_count == 2
    assert type(pair) is type(wanted)
    pair.current.sum().backward()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backend", "precision", "device", "message"),
    [
        ("tensorrt", "32-true", "cpu", "--backend: found 'tensorrt', expected auto, eager, compile, openvino, onnx"),
        ("eager", "16", "cpu", "--precision: found '16', expected auto, 32-true, bf16-mixed or int8"),
        ("onnxruntime", "bf16-mixed", "cpu", "--precision: found 'bf16-mixed', expected 32-true with --backend onnx"),
        ("openvino", "32-true", "cuda", "--backend: found 'openvino' with --device cuda, expected eager or compile"),
    ],
)
def test_ways_that_do_not_exist(student: Build, backend: str, precision: str, device: str, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        make_backend(backend, student("cad"), None, ExtraOutputs(), device=torch.device(device), precision=precision)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_missing_package_is_one_line(student: Build, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DistillError, match=f"{name}: not installed, expected `pip install"):
        runner(student("cad"), name)


@pytest.mark.parametrize("batch", [0, 2, -1])
def test_a_cpu_takes_one_section_at_a_time(student: Build, batch: int) -> None:
    with pytest.raises(DistillError, match=f"batch: found {batch}, expected 1 to 1 with eager"):
        SectionRunner(student("cad"), None, device=CPU, precision="32-true", backend="eager", batch=batch)


@pytest.mark.parametrize(("kind", "dtype"), [("uint8", np.uint8), ("float16", np.float16), ("float32", np.float32)])
def test_embeddings_are_stored_in_the_type_asked_for(student: Build, kind: str, dtype: type) -> None:
    given, network = sections(2), student("cad")
    (_, exact), (_, found) = (
        SectionRunner(
            network,
            None,
            device=CPU,
            precision="32-true",
            backend="eager",
            embedding=name,  # type: ignore[arg-type]
        ).push(given)
        for name in ("float32", kind)
    )
    assert exact.embedding is not None
    assert found.embedding is not None
    assert found.embedding.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(exact.embedding, axis=0), 1, rtol=1e-5)
    values = found.embedding / 127.5 - 1 if kind == "uint8" else found.embedding.astype(np.float32)
    np.testing.assert_allclose(values, exact.embedding, atol=0.5 / 127 if kind == "uint8" else 1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_types_of_sections(student: Build, dtype: type) -> None:
    grey = np.random.default_rng(0).random((2, 20, 30)).astype(np.float32)
    given = grey if dtype is np.float32 else np.rint(grey * np.iinfo(dtype).max).astype(dtype)
    found, wanted = (runner(student("cad"), "eager", slab=False).push(part) for part in (given, grey))
    agree(found, wanted, 40 if dtype is np.uint8 else 2, 0.2 if dtype is np.uint8 else 1e-2)


@pytest.mark.compiler
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_compiled_gives_what_eager_gives(student: Build) -> None:
    given = sections()
    agree(runner(student("cad"), "compile").push(given), runner(student("cad"), "eager").push(given), 1, 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_gpu_gives_what_a_cpu_gives_however_the_stream_is_cut(student: Build, backend: str, precision: str) -> None:
    cuda, given = torch.device("cuda"), sections(19)
    network = student("cad")
    whole, cut = (runner(network, backend, precision, cuda) for _ in range(2))
    assert isinstance(whole._steps.backend, TorchBackend)
    assert whole.batch == 8
    wanted = whole.push(given)
    same([out for a, b in ((0, 1), (1, 9), (9, 14), (14, 19)) for out in cut.push(given[a:b])], wanted)
    agree(wanted, runner(network, "eager").push(given), 1 if precision == "32-true" else 12, 1e-2)
