"""Weights files there and back, what does not fit, and published checkpoints."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.core.errors import CheckpointError
from distill.models.checkpoint import (
    agq_name,
    cad_name,
    load_module,
    read_published,
    read_weights,
    save_weights,
    write_tensors,
)

CONFIG = {"width": 8, "decoder": {"seeds": [0.5, 0.9, 0.9]}, "none": None}
NOTES = {"step": 12, "from": "a überlange note", "scores": {"voi": 0.9}}


class Net(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3)
        self.norm = nn.BatchNorm2d(width)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    net, other = Net(), Net(5).to(memory_format=torch.channels_last)
    net.norm.running_mean.fill_(7)
    path = tmp_path / "deep" / "weights.safetensors"
    save_weights(path, "student", {"student": net, "studentlike": other}, CONFIG, NOTES)
    found = read_weights(path)
    assert (found.kind, found.config, found.notes, found.path) == ("student", CONFIG, NOTES, path)
    assert list(path.parent.iterdir()) == [path]
    for name, module in (("student", net), ("studentlike", other)):
        assert set(found.part(name)) == set(module.state_dict())
        assert all(torch.equal(found.part(name)[key], value) for key, value in module.state_dict().items())
    assert found.part("decoder") == {}
    again = Net()
    load_module(again, found.part("student"), "weights")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """The library writes the metadata in another order every time."""
    paths = [tmp_path / f"{n}.safetensors" for n in range(8)]
    for path in paths:
        write_tensors(path, "teacher", {"teacher.b": torch.ones(3), "teacher.a": torch.zeros(2, 2)}, CONFIG, NOTES)
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_weights(paths[0]).notes == NOTES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "weights.safetensors"
    value = torch.arange(6).view(2, 3).to(dtype)
    write_tensors(path, "teacher", {"teacher.a": value}, {}, {})
    found = read_weights(path).tensors["teacher.a"]
    assert found.dtype == dtype
    assert torch.equal(found, value)


def test_writing_over_a_file_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for step in (1, 2):
        write_tensors(path, "teacher", {"teacher.a": torch.full((2,), step)}, {}, {"step": step})
    assert read_weights(path).notes == {"step": 2}
    assert read_weights(path).tensors["teacher.a"].tolist() == [2, 2]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.safetensors: cannot be written"):
        write_tensors(tmp_path / "folder.safetensors", "teacher", {"a": torch.zeros(1)}, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_tensors(tmp_path / "file" / "w.safetensors", "teacher", {"a": torch.zeros(1)}, {}, {})


def changed(net: Net, **changes: Tensor | None) -> dict[str, Tensor]:
    state = {**net.state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv__weight": None}, r"no tensor 'conv\.weight', expected shape \(3, 2, 3, 3\)"),
        ({"conv__bias": torch.zeros(4), "norm__weight": None}, r"'conv\.bias' has shape \(4,\), expected \(3,\)"),
        ({"norm__running_var": None}, r"no tensor 'norm\.running_var'"),
        ({"head__weight": torch.zeros(1)}, r"unknown tensor 'head\.weight'"),
    ],
)
def test_another_architecture_names_what_does_not_fit_first(changes: dict[str, Any], message: str) -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"w.safetensors: of another architecture: {message}"):
        load_module(net, changed(Net(), **changes), "w.safetensors")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["conv.weight", "norm.running_var"])
def test_weights_that_are_not_finite(tmp_path: Path, key: str, value: float) -> None:
    tensors = changed(Net())
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[1] = value
    with pytest.raises(CheckpointError, match=rf"w.safetensors: '{key}' holds values that are not finite"):
        load_module(Net(), tensors, "w.safetensors")
    write_tensors(tmp_path / "w.safetensors", "student", tensors, {}, {})
    with pytest.raises(CheckpointError, match=rf"w.safetensors: '{key}' holds values that are not finite"):
        read_weights(tmp_path / "w.safetensors")


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such weights file"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="no such weights file"):
        read_weights(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.ckpt")
    with pytest.raises(CheckpointError, match=r"not a safetensors file .*`distill convert`"):
        read_weights(tmp_path / "pickle.ckpt")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(tmp_path / "empty")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="format None, expected 'affinity-distill 1'"):
        read_weights(tmp_path / "foreign.safetensors")


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, "teacher", {"teacher.a": torch.zeros(1000)}, {}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(path)


# Published checkpoints


def cad_state(prefix: str = "") -> dict[str, Tensor]:
    keys = (
        "inc.conv.conv.0.weight",
        "down.2.mpconv.1.conv.4.running_mean",
        "up3_tn.conv.conv.3.bias",
        "outc_t.conv.bias",
    )
    return {prefix + key: torch.full((1,), float(n)) for n, key in enumerate(keys)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("under", ["model_weights", "state_dict", None])
def test_published_names_become_ours(tmp_path: Path, prefix: str, under: str | None) -> None:
    state = cad_state(prefix)
    torch.save({under: state, "current_iter": 5} if under else state, tmp_path / "a.ckpt")
    found = read_published(tmp_path / "a.ckpt")
    assert found.method == "cad"
    assert {key: float(value) for key, value in found.tensors.items()} == {
        "student.inc.0.weight": 0,
        "student.down.2.4.running_mean": 1,
        "student.up3_tn.3.bias": 2,
        "student.outc_t.bias": 3,
    }
    assert found.unplaced == []


def test_keys_without_a_place_are_reported(tmp_path: Path) -> None:
    state = {
        **cad_state("module."),
        "module.extra.weight": torch.zeros(1),
        "module.inc.conv.conv.2.weight": torch.zeros(1),
    }
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    found = read_published(tmp_path / "a.ckpt")
    assert found.unplaced == ["extra.weight", "inc.conv.conv.2.weight"]
    assert len(found.tensors) == 4


def test_every_published_key_gets_a_name_of_its_own(golden: Callable[[str], Path]) -> None:
    with safe_open(golden("agq_random_weights.safetensors"), "pt") as file:
        keys = list(file.keys())
    names = [agq_name(key) for key in keys]
    assert None not in names
    assert len(set(names)) == len(keys) > 200


def test_unknown_keys_have_no_name() -> None:
    for key in (
        "inc.conv.conv.2.weight",
        "down.4.mpconv.1.conv.0.weight",
        "outc_t.conv.weight.more",
        "xinc.conv.conv.0.bias",
    ):
        assert cad_name(key) is None
    for key in ("down_layers.1.0.weight", "inst_decoder.rpn.other.weight", "conv_in"):
        assert agq_name(key) is None
    assert agq_name("inst_decoder.bg_convs.2.0.weight") == "decoder.backgrounds.0.0.weight"
    assert agq_name("inst_decoder.bg_convs.0.1.bias") == "decoder.backgrounds.1.1.bias"


def test_the_published_file_gives_its_own_values(checkpoints: Callable[[str], Path]) -> None:
    found = read_published(checkpoints("cad/AC34.ckpt"))
    raw = torch.load(checkpoints("cad/AC34.ckpt"), map_location="cpu", weights_only=True)["model_weights"]
    assert len(found.tensors) == len(raw)
    for key, value in raw.items():
        name = cad_name(key.removeprefix("module."))
        assert name is not None
        assert torch.equal(found.tensors[name], value)


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["torch", "pickle", "renamed"])
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, form: str) -> None:
    witness = tmp_path / "executed"
    content = {"model_weights": cad_state(), "valid_result": Payload(f"touch {witness}")}
    path = tmp_path / ("a.safetensors" if form == "renamed" else "a.ckpt")
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"a\.(ckpt: not loadable as weights only|safetensors: not a safetensors)"
    ):
        read_published(path)
    assert not witness.exists()
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert not witness.exists()
    os.system(f"touch {witness}")  # the payload would have worked
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(1)}, r"neither an AGQ nor a CAD checkpoint: found 'conv1\.weight' first"),
        ({}, "found 'nothing' first"),
        ({"state_dict": {"a": 3}}, "expected named tensors"),
        ([torch.zeros(1)], "expected named tensors"),
        (torch.zeros(3), "expected named tensors"),
    ],
)
def test_checkpoints_of_neither_method(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "a.ckpt")


def test_a_checkpoint_with_numbers_for_names(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError):
        read_published(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_checkpoints_that_cannot_be_loaded(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: not loadable as weights only"):
        read_published(tmp_path / "a.ckpt")


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            read_published(path)
