"""The Y-shape on encoders of segmentation-models-pytorch: sizes, fusion, gradients, files, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.config import DecoderConfig, StudentConfig, StudentNetwork
from distill.core.errors import CheckpointError, ConfigError
from distill.models.build import build_student
from distill.models.checkpoint import save_weights
from distill.models.load import load_student, student_metadata
from students.smp import SmpYShape
from students.student import PairOutput, SectionFeatures, Student
from students.torchvision_schemas import heal_torchvision

CPU = torch.device("cpu")
ENCODERS = ("tu-resnet10t", "resnet18", "tu-mobilenetv3_large_100", "efficientnet-b0", "mit_b0")
SIZES = ((33, 47), (32, 16), (16, 1), (5, 3), (1, 1), (2, 40))
DATA = {"raw": "a.h5", "labels": "a.h5", "train": [0, 8], "validation": [8, 10]}

Build = Callable[..., Student]


def section(*size: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def tensors(output: PairOutput) -> list[Tensor]:
    return [output.previous, output.current, output.half, output.full]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_size(student: Build, encoder: str, size: tuple[int, int]) -> None:
    network, (height, width) = student(encoder), size
    with torch.no_grad():
        found = network(section(*size), section(*size, seed=1))
    assert (network.half_channels, network.full_channels, network.embedding_channels) == (4, 4, 5)
    assert found.previous.shape == found.current.shape == (1, 5, height, width)
    assert found.full.shape == (1, 4, height, width)
    assert found.half.shape == (1, 4, (height + 1) // 2, (width + 1) // 2)
    assert all(bool(part.isfinite().all()) for part in tensors(found))


def test_sections_are_padded_as_far_as_the_encoder_needs(student: Build) -> None:
    strides = {name: student(name).stride for name in ENCODERS}
    assert strides == {**dict.fromkeys(ENCODERS, 16), "mit_b0": 32}  # its attention pools maps of stride 4 by 8


@pytest.mark.parametrize("size", [(32, 48), (21, 35)])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_both_sections_at_once_are_encode_and_decode(student: Build, encoder: str, size: tuple[int, int]) -> None:
    network, previous, current = student(encoder), section(*size), section(*size, seed=1)
    with torch.no_grad():
        found = network(previous, current)
        wanted = network.decode(network.encode(previous), network.encode(current))
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(wanted), strict=True))


FUSIONS = [("tu-resnet10t", depth, fuse) for depth in (3, 4, 5) for fuse in range(depth)]


@pytest.mark.parametrize(("encoder", "depth", "fuse"), [*FUSIONS, ("mit_b0", 4, 1), ("mit_b0", 5, 0)])
def test_maps_up_to_fuse_belong_to_one_section(student: Build, encoder: str, depth: int, fuse: int) -> None:
    network = student(encoder, depth, fuse)
    with torch.no_grad():
        previous, current = (network.encode(section(64, 64, seed=n)) for n in range(2))
        plain = network.decode(previous, current)
        for level, before in enumerate(previous.maps):
            assert before.shape[-2:] == (64 >> level, 64 >> level)
            maps = list(previous.maps)
            maps[level] = before + torch.linspace(-9, 9, 64 >> level)
            found = network.decode(SectionFeatures(tuple(maps), previous.size), current)
            there = before.shape[1] > 0  # mit_b0 has no map of stride 2
            assert torch.equal(found.current, plain.current) == (level <= fuse or not there)
            assert torch.equal(found.half, plain.half) == (level <= fuse or not there)
            assert torch.equal(found.previous, plain.previous) != there


@pytest.mark.parametrize(
    ("encoder", "fuse"), [*((name, 1) for name in ENCODERS), ("tu-resnet10t", 0), ("tu-resnet10t", 3), ("mit_b0", 0)]
)
def test_gradients_reach_every_parameter(student: Build, encoder: str, fuse: int) -> None:
    network = copy.deepcopy(student(encoder, 4, fuse))
    size = 2 * network.stride
    pair = network(section(size, size), section(size, size, seed=1))
    (pair.previous.square().sum() + pair.current.square().sum()).backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()] == []


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_mode(student: Build, encoder: str) -> None:
    network = copy.deepcopy(student(encoder)).train()
    assert all(module.training for module in network.modules())
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith("running_mean")}
    found = network(section(48, 32, batch=2), section(48, 32, seed=1, batch=2))
    assert all(bool(part.isfinite().all()) for part in tensors(found))
    assert all(not torch.equal(value, network.get_buffer(name)) for name, value in before.items())


def test_a_new_network_is_in_training_mode() -> None:
    network = SmpYShape("tu-resnet10t", width=4, embedding=5)
    assert all(module.training for module in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


class Pyramid(nn.Module):
    """An encoder with maps of strides 2 to 16 that also drags along what nobody asks for."""

    out_channels = (1, 3, 3, 3, 3)

    def __init__(self, strides: tuple[int, ...] = (2, 4, 8, 16)) -> None:
        super().__init__()
        self.strides = strides
        self.stages = nn.ModuleList(nn.Conv2d(1 if n == 0 else 3, 3, 3, padding=1) for n in range(4))
        self.branches = nn.ModuleList([nn.Conv2d(3, 3, 1)])  # never used; iterated all the same
        self.head = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, deep, size = [x], x, x.shape[-1]
        for stage, stride in zip(self.stages, self.strides, strict=True):
            deep = nn.functional.adaptive_avg_pool2d(stage(deep), max(1, size // stride))
            maps.append(deep)
        assert [branch(deep) for branch in self.branches]
        return maps


def offer(monkeypatch: pytest.MonkeyPatch, get_encoder: Callable[..., nn.Module]) -> None:
    heal_torchvision()
    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_encoder", get_encoder)


def test_what_cannot_be_removed_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, lambda *_, **__: Pyramid())
    network = SmpYShape("resnet18", width=4, embedding=5)
    pair = network(section(16, 16, batch=2), section(16, 16, seed=1, batch=2))
    (pair.previous.square().sum() + pair.current.square().sum()).backward()
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {
        f"encoder.{name}" for name in ("branches.0.weight", "branches.0.bias", "head.weight", "head.bias")
    }
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_what_is_not_used_is_removed(student: Build) -> None:
    names = {
        encoder: {name.split(".")[0] for name, _ in student(encoder, depth).encoder.named_parameters()}
        for encoder, depth in (("resnet18", 4), ("mit_b0", 3))
    }
    assert names["resnet18"] == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert names["mit_b0"] == {f"{part}{level}" for part in ("patch_embed", "block", "norm") for level in (1, 2)}


def test_pretrained_weights_are_those_that_the_library_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pretrained = Pyramid()
    wanted = [p.detach().clone() for p in pretrained.stages.parameters()]
    asked: list[Any] = []

    def get_encoder(name: str, *, in_channels: int, depth: int, weights: str | None) -> nn.Module:
        asked.append((name, in_channels, depth, weights))
        return Pyramid() if weights is None else pretrained

    offer(monkeypatch, get_encoder)
    network = build_student(StudentNetwork(kind="smp", encoder="resnet18", width=4), weights="imagenet")
    assert set(asked) == {("resnet18", 1, 4, None), ("resnet18", 1, 4, "imagenet")}
    found = network.encoder.stages.parameters()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def refusal(*args: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        SmpYShape(*args, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for encoder in ("resnet18", "tu-resnet10t", "mit_b0"):
        message = refusal(encoder, weights="imagenet")
        assert message.startswith(f"encoder_weights: 'imagenet' for '{encoder}' cannot be obtained: ")
        assert message.endswith(
            "(encoder_weights: null), or copy the folder HF_HOME of a machine that has fetched them"
        )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route\nto host"), "obtained: no route; train"),
        (OSError(), "obtained: OSError; train"),
        (KeyError("Wrong pretrained weights `x`"), "Wrong pretrained weights `x`"),
    ],
)
def test_whatever_the_hub_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def get_encoder(*_: Any, weights: str | None, **__: Any) -> nn.Module:
        if weights is None:
            return Pyramid()
        raise error

    offer(monkeypatch, get_encoder)
    assert said in refusal("resnet18", weights="x")


@pytest.mark.parametrize(
    ("encoder", "more", "parts"),
    [
        ("resnet", {}, ["encoder: found 'resnet', expected one of", "or tu-NAME"]),
        ("", {}, ["encoder: found ''"]),
        ("tu-resnet10", {}, ["encoder: 'tu-resnet10' cannot be built with depth 4", "Unknown model"]),
        ("tu-resnet10t.none", {}, ["encoder: 'tu-resnet10t.none' cannot be built", "Invalid pretrained tag"]),
        ("tu-vit_tiny_patch16_224", {}, ["encoder: 'tu-vit_tiny_patch16_224' cannot be built with depth 4"]),
        ("resnet18", {"depth": 6}, ["encoder: 'resnet18' cannot be built with depth 6", "[1, 5]"]),
        ("tu-resnet10t", {"depth": 6}, ["encoder: 'tu-resnet10t' cannot be built with depth 6"]),
        ("resnet18", {"depth": 3, "fuse": 3}, ["fuse: found 3, expected 0 to 2"]),
        ("resnet18", {"fuse": -1}, ["fuse: found -1, expected 0 to 3"]),
        ("resnet18", {"weights": "none"}, ["encoder_weights: 'none' for 'resnet18' cannot be obtained", "imagenet"]),
    ],
)
def test_networks_that_cannot_be_built(encoder: str, more: dict[str, Any], parts: list[str]) -> None:
    message = refusal(encoder, **more)
    assert all(part in message for part in parts), message


def test_an_encoder_on_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "encoder: 'tu-hf-hub:some/one' cannot be built" in refusal("tu-hf-hub:some/one")


def test_an_encoder_of_other_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, lambda *_, **__: Pyramid((2, 4, 8, 8)))
    assert refusal("resnet18") == "encoder: 'resnet18' has maps of strides [2, 4, 8, 8], expected 2, 4, ..., 16"


def test_old_names_of_encoders_still_work() -> None:
    network = SmpYShape("timm-efficientnet-b0", depth=3, width=4, embedding=5).eval()
    with torch.no_grad():
        assert network(section(8, 8), section(8, 8)).current.shape == (1, 5, 8, 8)


def config(**network: Any) -> StudentConfig:
    return StudentConfig.model_validate({"data": DATA, "width": 4, "embedding": 5, **network})


def saved(path: Path, student: Student, values: dict[str, Any]) -> str:
    save_weights(path, "student", {"student": student}, values, {"step": 3})
    return str(path)


@pytest.mark.parametrize(
    ("encoder", "depth", "fuse"), [*((name, 4, 1) for name in ENCODERS), ("resnet18", 3, 2), ("mit_b0", 5, 0)]
)
def test_a_file_gives_the_network_back(student: Build, tmp_path: Path, encoder: str, depth: int, fuse: int) -> None:
    network = student(encoder, depth, fuse)
    given = config(kind="smp", encoder=encoder, depth=depth, fuse=fuse, encoder_weights="imagenet")
    values = student_metadata(given, 64, DecoderConfig(), (30.0, 6.0, 6.0))
    found = load_student(saved(tmp_path / "student.safetensors", network, values), CPU)
    assert isinstance(found.student, SmpYShape)
    assert not any(module.training for module in found.student.modules())
    assert (found.student.stride, found.student.fuse) == (network.stride, fuse)
    wanted = network.state_dict()
    assert list(found.student.state_dict()) == list(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.student.state_dict().items())
    pair = section(33, 40), section(33, 40, seed=1)
    with torch.no_grad():
        again = load_student(str(tmp_path / "student.safetensors"), CPU).student(*pair)
        assert all(map(torch.equal, tensors(found.student(*pair)), tensors(again)))
        torch.testing.assert_close(again.current, network(*pair).current, rtol=1e-4, atol=1e-4)  # memory format differs


@pytest.mark.parametrize("written", ["conversion", "training"])
def test_files_without_the_keys_of_the_library(student: Build, tmp_path: Path, written: str) -> None:
    """As they were written when the paper's network was the only one."""
    values: dict[str, Any] = {"kind": "cad", "width": 4, "embedding": 5}
    if written == "training":
        values |= {"fused": 64, "resolution": [30, 6, 6], "decoder": DecoderConfig().model_dump(mode="json")}
    network = student("cad")
    found = load_student(saved(tmp_path / "student.safetensors", network, values), CPU)
    assert type(found.student) is type(network)
    wanted = network.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.student.state_dict().items())


def test_an_encoder_in_a_file_that_is_not_known(student: Build, tmp_path: Path) -> None:
    values = {"kind": "smp", "width": 4, "embedding": 5, "encoder": "tu-resnet10"}
    path = saved(tmp_path / "student.safetensors", student("tu-resnet10t"), values)
    with pytest.raises(CheckpointError, match=r"its configuration is not a student's: encoder: 'tu-resnet10' cannot"):
        load_student(path, CPU)


@pytest.mark.parametrize(("key", "value"), [("encoder", "resnet18"), ("fuse", 2), ("depth", 3), ("width", 8)])
def test_a_file_of_another_network_is_refused(student: Build, tmp_path: Path, key: str, value: Any) -> None:
    values = {"kind": "smp", "width": 4, "embedding": 5, "encoder": "tu-resnet10t", "depth": 4, "fuse": 1, key: value}
    path = saved(tmp_path / "student.safetensors", student("tu-resnet10t"), values)
    with pytest.raises(CheckpointError, match="of another architecture"):
        load_student(path, CPU)
