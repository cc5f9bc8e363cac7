"""Published checkpoints become weights files that run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config import StudentNetwork
from distill.core.errors import CheckpointError, SourceError
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.segment import segment
from distill.inference.options import Callbacks, Options
from distill.inference.streaming.options import Streaming
from distill.inference.streaming.stream import stream
from distill.io.volume import open_volume
from distill.models.build import build_student
from distill.models.checkpoint import read_weights
from distill.models.convert import convert
from distill.models.load import load_student

OPTIONS = Options(None, (3, 6), "cpu", "32-true", backend="eager")


def published_name(key: str) -> str:
    """Name of a student's parameter in the published code."""
    key = re.sub(r"^down\.(\d)\.", r"down.\1.mpconv.1.conv.", key)
    key = re.sub(r"^(inc|up\d(?:_tn?)?)\.", r"\1.conv.conv.", key)
    return re.sub(r"^(outc\w*)\.", r"\1.conv.", key)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A CAD checkpoint as its authors would save it, with random weights."""
    torch.manual_seed(0)
    network = build_student(StudentNetwork(kind="cad"))
    state = {f"module.{published_name(k)}": v for k, v in network.state_dict().items()}
    torch.save({"model_weights": state}, tmp_path / "cad.ckpt")
    return tmp_path / "cad.ckpt"


@pytest.mark.commands("convert")
def test_cad_keeps_every_tensor(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "cad.safetensors"
    found = convert(published, out)
    assert (found.method, found.kind, found.unplaced) == ("CAD student", "student", [])
    given = torch.load(published, weights_only=True)["model_weights"]
    assert found.tensors == len(given)
    weights = read_weights(out)
    assert weights.kind == "student"
    assert weights.notes["published"] == "cad.ckpt"
    part = weights.part("student")
    assert all(torch.equal(part[name], given[f"module.{published_name(name)}"]) for name in part)
    assert load_student(str(out), torch.device("cpu")).decoder is None


def runs(weights: Path, phantom: Path, folder: Path) -> None:
    """Stream: affinities only, and a note about it; segment: by other methods only."""
    notes: list[str] = []
    words = str(phantom), str(weights)
    out, callbacks = folder / "out.zarr", Callbacks(note=notes.append)
    about = stream(*words, out, OPTIONS, Streaming(method="query"), callbacks).about
    assert about["method"] is None
    lines = [f"{weights} has no query decoder: affinities only. For instances: --method flood"]
    if "resolution" not in read_weights(weights).notes:
        lines.append(
            f"{weights} does not say what voxels it was trained on; {phantom}:volumes/raw has 30 x 6 x 6 nm (z, y, x)"
        )
    assert [note for note in notes if note.startswith(str(weights))] == lines
    affinity = open_volume(f"{folder / 'out.zarr'}:affinity").read()
    assert affinity.shape == (3, 3, 96, 96)
    assert (affinity[0, 0] == 0).all()
    assert affinity.std() > 0
    assert not (folder / "out.zarr" / "segmentation").exists()
    with pytest.raises(CheckpointError, match="has no query decoder, expected --method flood"):
        segment(*words, folder / "query.zarr", OPTIONS, Blocking(network="student", method="query"), callbacks)
    assert not (folder / "query.zarr").exists()
    with pytest.raises(CheckpointError, match="holds a student, expected a teacher"):
        segment(*words, folder / "query.zarr", OPTIONS, Blocking(network="teacher", method="query"), callbacks)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("cad.ckpt", None, None),
        ("AC34.ckpt", None, [30, 6, 6]),
        ("ac3_4.ckpt", None, [30, 6, 6]),
        ("CremiC.ckpt", None, [40, 4, 4]),
        ("CremiC.ckpt", (35, 8, 8), [35, 8, 8]),
    ],
)
def test_the_voxel_size_is_the_one_given_or_of_the_volume_in_the_name(
    published: Path, tmp_path: Path, name: str, given: tuple[float, float, float] | None, kept: list[float] | None
) -> None:
    found = convert(published.rename(tmp_path / name), tmp_path / "w.safetensors", given)
    assert load_student(str(tmp_path / "w.safetensors"), torch.device("cpu")).notes.get("resolution") == kept
    assert found.resolution == (None if kept is None else tuple(kept))


def test_a_voxel_size_is_checked(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--resolution: found resolution \(30.0, 0.0, 6.0\)"):
        convert(published, tmp_path / "w.safetensors", (30, 0, 6))
    assert not (tmp_path / "w.safetensors").exists()


def test_cad_streams(published: Path, phantom: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "cad.safetensors")
    runs(tmp_path / "cad.safetensors", phantom, tmp_path)


@pytest.mark.parametrize("name", ["cad/AC34.ckpt", "cad/CremiC.ckpt"])
def test_the_published_checkpoints_stream(
    checkpoints: Callable[[str], Path], phantom: Path, tmp_path: Path, name: str
) -> None:
    found = convert(checkpoints(name), tmp_path / "cad.safetensors")
    assert found.kind == "student"
    assert found.unplaced == []
    runs(tmp_path / "cad.safetensors", phantom, tmp_path)


def test_what_is_no_published_checkpoint(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    state = torch.load(published, weights_only=True)["model_weights"]
    narrow = {key: value[:8] if value.ndim else value for key, value in state.items()}
    short = dict(list(state.items())[:-1])
    for content, says in (
        ({"model_weights": narrow}, "of another architecture: .* has shape .* expected"),
        ({"model_weights": short}, "of another architecture: no tensor"),
        ({"weight": torch.zeros(1)}, "neither an AGQ nor a CAD checkpoint: found 'weight' first"),
        ({"step": 3}, "expected named tensors"),
    ):
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointError, match=rf"bad\.ckpt.*{says}"):
            convert(tmp_path / "bad.ckpt", out)
    (tmp_path / "bad.ckpt").write_bytes(published.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"bad\.ckpt: not loadable as weights only"):
        convert(tmp_path / "bad.ckpt", out)
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(CheckpointError, match=r"bad\.npy: not loadable"):
        convert(tmp_path / "bad.npy", out)
    assert not out.exists()


def test_where_weights_cannot_go(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--out: found .*w\.pt, expected a name that ends in \.safetensors"):
        convert(published, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"w\.safetensors: cannot be written: .*cad\.ckpt is not a folder"):
        convert(published, published / "w.safetensors")
