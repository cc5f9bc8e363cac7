"""Runs with --rescale: what a run on the resampled sections gives, carried to the pixels as recorded, however cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import distill.inference.blockwise.segment as blocks_recipe
import viz.embeddings.figure as pca_recipe
from distill.core.affinity import NEAREST
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box
from distill.core.labels import compact
from distill.evaluation.segmentation import evaluate
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.segment import segment
from distill.inference.embeddings import Windows
from distill.inference.options import Options
from distill.inference.rescaling.results import rescaling_of
from distill.inference.rescaling.sections import resample_section
from distill.inference.streaming.finish import finish
from distill.inference.streaming.options import Streaming
from distill.inference.streaming.output.store import StreamStore
from distill.inference.streaming.plan import StreamPart
from distill.inference.streaming.sections.watch import Following
from distill.inference.streaming.stream import stream
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi
from students.streaming import tiling
from students.streaming.receptive_field import ReceptiveField
from viz.embeddings.figure import pca

PLACE = (30.0, 60.0, -6.0)
FURTHER = (*NEAREST, (-2, 0, 0))
SHAPE = (4, 44, 40)  # two layers
Array = NDArray[Any]


def options(*, rescale: bool = True, sections: tuple[int, int | None] | None = None) -> Options:
    return Options(None, sections, "cpu", "32-true", backend="eager", rescale=rescale)


def quiet(*_: Any) -> None:
    """Neither progress nor notes."""


def run_stream(source: object, run: Path, out: Path, *, rescale: bool = True, **more: Any) -> dict[str, Any]:
    chosen = options(rescale=rescale)
    return stream(str(source), str(run), out, chosen, Streaming(**({"method": "query"} | more))).about


def run_segment(
    source: object, run: Path, out: Path, *, rescale: bool = True, block: Any = None, resume: bool = False
) -> dict[str, Any]:
    blocking = Blocking(block, resume=resume, method="query")
    return segment(str(source), str(run), out, options(rescale=rescale), blocking).about


class Recorded:
    """A crop of the phantom taken for sections of another pixel size, and the same resampled to the model's."""

    def __init__(self, folder: Path, phantom: Path, pixel: tuple[float, float]) -> None:
        raw = open_volume(phantom).read(Box.of_shape(SHAPE))
        labels = open_labels(phantom).read(Box.of_shape(SHAPE))
        self.rescaling = rescaling_of("", SHAPE[1:], (30.0, *pixel), (6.0, 6.0))
        assert self.rescaling is not None
        small = np.stack([resample_section(section, self.rescaling) for section in raw])
        self.path, self.resampled = folder / "recorded.h5", folder / "resampled.h5"
        self.raw, self.resolution = raw, (30.0, *pixel)
        write_cremi(self.path, raw=raw, labels=labels, resolution=self.resolution, offset=PLACE)
        write_cremi(self.resampled, raw=small, resolution=(30, 6, 6), offset=PLACE)

    @property
    def boxes(self) -> tuple[Box, Box]:
        assert self.rescaling is not None
        return Box.of_shape(self.raw.shape), Box.of_shape((len(self.raw), *self.rescaling.model))

    def affinity(self, found: Array, offsets: Any = NEAREST) -> Array:
        assert self.rescaling is not None
        return self.rescaling.affinity(found, offsets, *self.boxes)

    def nearest(self, found: Array) -> Array:
        assert self.rescaling is not None
        return self.rescaling.nearest(found, *self.boxes)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receptive field of the whole section in place of the measured one, which takes long."""
    for module in (blocks_recipe, tiling):
        monkeypatch.setattr(module, "receptive_field", lambda student: ReceptiveField((128, 128)))


def read(out: Path, name: str) -> Array:
    return open_volume(f"{out}:{name}").read()


@pytest.fixture(scope="module")
def recorded(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Pixels of 5 x 4 nm."""
    return Recorded(tmp_path_factory.mktemp("recorded"), phantom, (5.0, 4.0))


@pytest.fixture(scope="module")
def whole(recorded: Recorded, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of a stream with --rescale in one go."""
    out = tmp_path_factory.mktemp("whole") / "whole.zarr"
    run_stream(recorded.path, run, out, offsets=FURTHER)
    return out


@pytest.mark.parametrize("pixel", [(4.0, 6.0), (9.0, 14.0)])
def test_a_stream_is_that_of_resampled_sections_carried_over(
    run: Path, phantom: Path, tmp_path: Path, pixel: tuple[float, float]
) -> None:
    given = Recorded(tmp_path, phantom, pixel)
    about = run_stream(given.path, run, tmp_path / "a.zarr", embedding="uint8", offsets=FURTHER)
    run_stream(given.resampled, run, tmp_path / "b.zarr", rescale=False, embedding="uint8", offsets=FURTHER)
    a, b = tmp_path / "a.zarr", tmp_path / "b.zarr"
    np.testing.assert_array_equal(read(a, "affinity"), given.affinity(read(b, "affinity"), FURTHER))
    np.testing.assert_array_equal(read(a, "embedding"), given.nearest(read(b, "embedding")))
    labels = read(a, "segmentation")
    np.testing.assert_array_equal(labels, compact(given.nearest(read(b, "segmentation"))))
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, about["objects"] + 1))
    for name in ("affinity", "embedding", "segmentation", "supervoxels"):
        assert open_volume(f"{a}:{name}").resolution == given.resolution
        assert open_volume(f"{a}:{name}").offset == PLACE
    assert about["rescaled"]["pixel"] == [6, 6]
    assert about["rescaled"]["factor"] == pytest.approx([6 / pixel[0], 6 / pixel[1]])
    scored = evaluate(f"{a}:segmentation", str(given.path), "skimage")
    assert scored.scores.voxels == np.count_nonzero(open_labels(given.path).read())


@pytest.mark.parametrize("way", ["ranges", "resumed", "followed", "tiles"])
def test_a_stream_is_the_same_however_it_is_done(
    recorded: Recorded, whole: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: None, way: str
) -> None:
    out, words = tmp_path / "out.zarr", (recorded.path, run, tmp_path / "out.zarr")
    folder = tmp_path / "sections"
    folder.mkdir()
    for z, section in enumerate(recorded.raw):
        tifffile.imwrite(folder / f"s_{z}.tif", section)
    chosen = Options(recorded.resolution, None, "cpu", "32-true", backend="eager", rescale=True)
    if way == "ranges":
        for index in (1, 0):
            run_stream(*words, offsets=FURTHER, part=StreamPart(index, 2))
        finish(out, None)
    elif way == "resumed":
        broken_off(monkeypatch, lambda: run_stream(*words, offsets=FURTHER))
        run_stream(*words, offsets=FURTHER, resume=True)
    elif way == "tiles":
        run_stream(*words, offsets=FURTHER, segment=False, tile=32)
    else:
        given = Streaming(method="query", offsets=FURTHER, following=Following(settle=0.01, until=SHAPE[0]))
        stream(str(folder), str(run), out, chosen, given)
    if way == "tiles":  # kernels add up in another order
        found, wanted = (read(store, "affinity").astype(int) for store in (out, whole))
        np.testing.assert_allclose(found, wanted, atol=1)
        return
    for name in ("affinity", "segmentation", "supervoxels"):
        np.testing.assert_array_equal(read(out, name), read(whole, name))


def broken_off(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Run until the second layer is to be written."""
    steps, write = itertools.count(), StreamStore.write_layer

    def failing(*given: Any) -> None:
        if next(steps) == 1:
            raise RuntimeError("broken off")
        write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(StreamStore, "write_layer", failing)
        with pytest.raises(RuntimeError, match="broken off"):
            work()


def test_blocks_are_the_stream(run: Path, phantom: Path, tmp_path: Path, seen: None) -> None:
    """In several blocks of the model's pixels, whose small objects larger pixels do not all show."""
    given = Recorded(tmp_path, phantom, (9.0, 6.0))
    blocks, streamed = tmp_path / "blocks.zarr", tmp_path / "streamed.zarr"
    about = run_segment(given.path, run, blocks, block=(4, 48, 48))
    assert about["blocks"] == [1, 2, 1]
    assert about["rescaled"]["size"] == [66, 40]
    run_stream(given.path, run, streamed)
    labels = read(blocks, "segmentation")
    np.testing.assert_array_equal(labels, read(streamed, "segmentation"))
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, about["objects"] + 1))
    found, wanted = (read(store, "affinity").astype(int) for store in (blocks, streamed))
    np.testing.assert_allclose(found, wanted, atol=1)
    assert open_volume(f"{blocks}:affinity").resolution == given.resolution
    assert open_volume(f"{blocks}:affinity").offset == PLACE
    with pytest.raises(SourceError, match=r"was begun with rescaled \{.*, found null"):
        run_segment(given.path, run, blocks, block=(4, 48, 48), resume=True, rescale=False)


def test_a_stream_goes_on_as_it_was_begun(recorded: Recorded, run: Path, whole: Path) -> None:
    with pytest.raises(SourceError, match=r"was begun with rescaled \{.*\"factor\": \[1.2, 1.5\]\}, found null"):
        run_stream(recorded.path, run, whole, rescale=False, offsets=FURTHER, resume=True)


def test_offsets_within_the_section_are_refused(recorded: Recorded, run: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"--offset 0,-9,0: found --rescale"):
        run_stream(recorded.path, run, tmp_path / "out.zarr", offsets=(*NEAREST, (0, -9, 0)))
    assert not (tmp_path / "out.zarr").exists()


def test_a_sweep_runs_its_model_on_the_models_pixels(
    recorded: Recorded, run: Path, whole: Path, cli: Callable[..., Any], cpu: tuple[str, ...], tmp_path: Path
) -> None:
    labels = f"{recorded.path}:volumes/labels/neuron_ids"
    words = (f"{whole}:affinity", labels, "--methods", "query", "--query", "0.5,1")
    found = []
    for name, more in (("store", ()), ("model", ("--model", run, "--source", recorded.path, "--rescale", *cpu))):
        said = cli("sweep", *words, "--out", tmp_path / name, *more)
        assert said.code == 0, said.err
        rows = json.loads((tmp_path / name / "sweep.json").read_text())["methods"]["query"]["thresholds"]
        found.append([(row["voi"], row["objects"]) for row in rows])
    assert found[0] == found[1]
    said = cli("sweep", *words, "--out", tmp_path / "none", "--rescale")
    assert said.code == 2
    assert "--rescale: found no --model" in said.err


def test_the_figure_of_embeddings_is_on_the_models_pixels(
    recorded: Recorded, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(pca_recipe, "pca_figure", lambda *args, **named: given.append(args))
    notes: list[str] = []
    for source, rescale in ((recorded.path, True), (recorded.resampled, False)):
        pca(
            str(source),
            None,
            str(run),
            3,
            tmp_path / "a.png",
            Windows(None),
            device="cpu",
            precision="32-true",
            rescale=rescale,
            note=notes.append,
        )
    np.testing.assert_array_equal(given[0][0], given[1][0])
    np.testing.assert_array_equal(given[0][1][0].rgb, given[1][1][0].rgb)
    assert given[0][2] == pytest.approx((6.0, 6.0))
    assert sum("resampled from 5 x 4 to 6 x 6 nm (y, x); so is the figure" in note for note in notes) == 1


def test_the_command_line_names_the_option(
    recorded: Recorded, run: Path, cli: Callable[..., Any], cpu: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("stream", recorded.path, "--model", run, "--no-segment", "--sections", "0:2", *cpu)
    without = cli(*words, "--out", tmp_path / "a.zarr")
    assert "has pixels of 5 x 4 nm, the model was trained on 6 x 6 nm (y, x); --rescale" in without.out + without.err
    said = cli(*words, "--out", tmp_path / "b.zarr", "--rescale")
    assert said.code == without.code == 0
    assert "--rescale" not in said.out + said.err
    assert "resampled from 5 x 4 to 6 x 6 nm" in said.out + said.err
    record = json.loads((tmp_path / "b.zarr.run.json").read_text())
    assert record["rescaled"] == {"size": [37, 27], "pixel": [6.0, 6.0], "factor": [1.2, 1.5]}
    assert open_volume(f"{tmp_path / 'b.zarr'}:affinity").size == (2, *SHAPE[1:])
