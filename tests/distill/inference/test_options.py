"""Stream and segment: one result, at the right place, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import distill.inference.blockwise.segment as recipe
import distill.inference.streaming.stream as stream_recipe
from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import stored_offsets
from distill.core.errors import CheckpointError, DistillError
from distill.core.labels import compact
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.segment import segment
from distill.inference.options import WATERZ_THRESHOLD, Callbacks, Options, merge_threshold
from distill.inference.streaming.options import Streaming
from distill.inference.streaming.stream import stream
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi
from distill.models.checkpoint import read_weights
from distill.models.load import load_student

CPU = torch.device("cpu")
EXACT = Options(device="cpu", precision="32-true", backend="eager")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def quiet(*_: Any) -> None:
    """Neither progress nor notes."""


def run_stream(source: object, model: object, out: Path, options: Options, **more: Any) -> dict[str, Any]:
    callbacks = Callbacks(note=more.pop("note", quiet))
    return stream(str(source), str(model), out, options, Streaming(**({"method": "query"} | more)), callbacks).about


def run_segment(source: object, model: object, out: Path, options: Options, **more: Any) -> dict[str, Any]:
    callbacks = Callbacks(note=more.pop("note", quiet))
    return segment(str(source), str(model), out, options, Blocking(**({"method": "query"} | more)), callbacks).about


def arrays(out: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return open_volume(f"{out}:affinity").read(), open_labels(f"{out}:segmentation").read()


@pytest.mark.parametrize("merge", [None, 0.2, 0.9])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("sections", [(0, 1), (3, 5), (12, 19), (13, 20)])
def test_stream_is_segment(
    run: Path, phantom: Path, tmp_path: Path, merge: float | None, precision: str, sections: tuple[int, int]
) -> None:
    options = Options(sections=sections, device="cpu", precision=precision, merge=merge, backend="eager")
    about = run_stream(phantom, run, tmp_path / "a.zarr", options)
    again = run_segment(phantom, run, tmp_path / "b.zarr", options)
    (affinity, labels), (other_affinity, other_labels) = arrays(tmp_path / "a.zarr"), arrays(tmp_path / "b.zarr")
    # a block samples its upsampling where the whole section does, by other arithmetic
    np.testing.assert_allclose(
        affinity.astype(int), other_affinity.astype(int), atol=1 if precision == "32-true" else 9
    )
    np.testing.assert_array_equal(labels, other_labels)
    assert about["objects"] == again["objects"] == labels.max()
    np.testing.assert_array_equal(compact(labels), labels)
    assert labels.min() > 0
    own = read_weights(run / "best" / "student.safetensors").notes["merge_threshold"]
    assert about["merge_threshold"] == again["merge_threshold"] == (own if merge is None else merge)


def test_sections_are_streamed_as_the_whole(run: Path, phantom: Path, tmp_path: Path) -> None:
    """From the second section on, a part has the affinities of the whole stream; its first has no z edge."""
    run_stream(phantom, run, tmp_path / "whole.zarr", EXACT, segment=False)
    run_stream(
        phantom, run, tmp_path / "part.zarr", Options(None, (7, None), "cpu", "32-true", backend="eager"), segment=False
    )
    whole, part = (open_volume(tmp_path / f"{name}.zarr:affinity") for name in ("whole", "part"))
    np.testing.assert_array_equal(part.read()[:, 1:], whole.read()[:, 8:])
    assert (part.read()[0, 0] == 0).all()
    assert (whole.read()[0, 7] > 0).any()
    assert not (tmp_path / "whole.zarr" / "segmentation").exists()


@pytest.mark.parametrize("command", [run_stream, run_segment])
@pytest.mark.parametrize(
    ("sections", "offset"), [(None, (90.0, -6.0, 4.0)), ((0, 2), (90.0, -6.0, 4.0)), ((3, None), (210.0, -6.0, 4.0))]
)
def test_offset_moves_by_the_first_section(
    run: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    sections: tuple[int, int | None] | None,
    offset: tuple[float, float, float],
) -> None:
    source = tmp_path / "raw.h5"
    raw = np.random.default_rng(0).integers(0, 255, (5, 33, 40), np.uint8)
    write_cremi(source, raw=raw, resolution=(40, 8, 7), offset=(90, -6, 4))
    command(source, run, tmp_path / "out.zarr", Options(None, sections, "cpu", "32-true", backend="eager"))
    for name in ("affinity", "segmentation"):
        found = open_volume(f"{tmp_path / 'out.zarr'}:{name}")
        assert found.offset == offset
        assert found.resolution == (40.0, 8.0, 7.0)
        first, last = sections or (0, None)
        assert found.size == ((last or 5) - first, 33, 40)


def test_wrong_precision_is_found_before_anything_is_written(run: Path, phantom: Path, tmp_path: Path) -> None:
    for command in (run_stream, run_segment):
        with pytest.raises(DistillError, match=r"--precision: found '16', expected auto, 32-true, bf16-mixed or int8"):
            command(phantom, run, tmp_path / "out.zarr", Options(device="cpu", precision="16"))
    assert not list(tmp_path.iterdir())


def test_waterz_merges_more_at_a_higher_score(run: Path, phantom: Path, tmp_path: Path) -> None:
    pytest.importorskip("waterz")
    objects = []
    for merge in (0.0, 0.99):
        options = Options(None, (0, 3), "cpu", "32-true", merge, True, "eager")
        about = run_segment(phantom, run, tmp_path / "out.zarr", options, method="waterz")
        assert about["merge_threshold"] == merge
        objects.append(about["objects"])
    assert objects[0] > objects[1] >= 1
    assert (
        run_segment(
            phantom,
            run,
            tmp_path / "own.zarr",
            Options(None, (0, 2), "cpu", "32-true", backend="eager"),
            method="waterz",
        )["merge_threshold"]
        == WATERZ_THRESHOLD
    )


def test_merge_threshold_is_the_given_one_else_the_models() -> None:
    assert merge_threshold(Options(merge=0.0), {"merge_threshold": 0.7}) == 0.0
    assert merge_threshold(Options(), {"merge_threshold": 0.7}) == 0.7
    assert merge_threshold(Options(), {"merge_threshold": None}) is None
    assert merge_threshold(Options(), {}) is None


@pytest.mark.parametrize("command", [run_stream, run_segment])
def test_other_voxels_are_warned_of_on_the_way(
    run: Path, phantom: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    notes: list[str] = []
    options = Options((8, 8, 8), (0, 2), "cpu", "32-true", backend="eager")
    command(phantom, run, tmp_path / "out.zarr", options, note=notes.append)
    assert notes[0].startswith("device cpu (")
    warned = [note for note in notes if " nm, the model was trained on " in note]
    assert [note.split(" has ")[0] for note in warned] == [f"warning: {phantom}:volumes/raw"] * 2


def test_query_method_needs_a_decoder(
    run: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    load = recipe.load_student
    for module in (recipe, stream_recipe):
        monkeypatch.setattr(module, "load_student", lambda *a: replace(load(*a), slab=None, decoder=None))
    with pytest.raises(CheckpointError, match=r"has no query decoder, expected --method flood"):
        run_segment(phantom, run, tmp_path / "out.zarr", EXACT)
    assert not list(tmp_path.iterdir())
    notes: list[str] = []
    about = run_stream(phantom, run, tmp_path / "out.zarr", Options(None, (0, 2), "cpu"), note=notes.append)
    assert about["method"] is None
    assert notes[0].startswith("device cpu (")
    assert ["has no query decoder: affinities only" in note for note in notes].count(True) == 1
    assert not (tmp_path / "out.zarr" / "segmentation").exists()


FURTHER = ((-2, 0, 0), (0, 9, -4), (-3, -1, 2))


def test_stored_channels_are_the_offsets_asked_for(run: Path, phantom: Path, tmp_path: Path) -> None:
    offsets, options = (*NEAREST, *FURTHER), Options(None, (3, 8), "cpu", "32-true", backend="eager")
    about = run_stream(phantom, run, tmp_path / "more.zarr", options, offsets=offsets)
    plain = run_stream(phantom, run, tmp_path / "plain.zarr", options)
    assert (about["offsets"], plain["offsets"]) == ([list(o) for o in offsets], [list(o) for o in NEAREST])
    found = open_volume(f"{tmp_path / 'more.zarr'}:affinity")
    assert stored_offsets(found.attributes, found.source) == offsets
    assert found.attributes["neighborhood"] == found.attributes["offsets"]
    (more, labels), (nearest, others) = arrays(tmp_path / "more.zarr"), arrays(tmp_path / "plain.zarr")
    assert (more.shape, more.dtype) == ((6, 5, 96, 96), np.uint8)
    np.testing.assert_array_equal(more[:3], nearest)
    np.testing.assert_array_equal(labels, others)  # the query decoder sees the nearest ones
    trained, embeddings = load_student(str(run), CPU), []
    student = trained.student
    sections = torch.from_numpy(trained.normaliser.sections(open_volume(phantom).read()[3:8]))[:, None, None]
    with torch.no_grad():
        for z in range(5):
            pair = student(sections[max(0, z - 1)], sections[z])
            embeddings.append((F.normalize(pair.previous[0], dim=0), F.normalize(pair.current[0], dim=0)))
    for k, (dz, dy, dx) in enumerate(FURTHER, start=3):
        for z in range(5):
            wanted = np.zeros((96, 96))
            if z + dz >= 0:
                now = embeddings[z][1].numpy()
                other = now if dz == 0 else embeddings[z + dz + 1][0].numpy()
                for y, x in np.ndindex(96, 96):
                    if 0 <= y + dy < 96 and 0 <= x + dx < 96:
                        wanted[y, x] = now[:, y, x] @ other[:, y + dy, x + dx]
            np.testing.assert_allclose(more[k, z], 255 * wanted.clip(0, 1), rtol=0, atol=0.6)
        assert more[k, 4].std() > 0


def test_offsets_are_refused_before_anything_is_written(run: Path, phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"offset \[1, 0, 0\]: expected one within the section or to an earlier one"):
        run_stream(phantom, run, tmp_path / "out.zarr", EXACT, offsets=(*NEAREST, (1, 0, 0)))
    assert not list(tmp_path.iterdir())


def test_offsets_on_the_command_line(
    cli: Callable[..., Any], cpu: tuple[str, ...], run: Path, phantom: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    words = ("stream", phantom, "--model", run, "--sections", "0:4", "--no-segment", *cpu, "--out")
    said = cli(*words, out, "--offset", "-2,0,0", "--offset=0,-9,4")
    assert said.code == 0, said.err
    found = open_volume(f"{out}:affinity")
    assert found.shape == (5, 4, 96, 96)
    assert stored_offsets(found.attributes, found.source) == (*NEAREST, (-2, 0, 0), (0, -9, 4))
    assert [bool(section.any()) for section in found.read()[3]] == [False, False, True, True]
    for text, message in (("1,0,0", "expected one within the section"), ("1,0", "--offset: found '1,0'")):
        said = cli(*words, tmp_path / "none.zarr", "--offset", text)
        assert said.code == 2
        assert message in said.err
        assert not (tmp_path / "none.zarr").exists()
