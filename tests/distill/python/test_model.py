"""Models on arrays in memory: every type and order of grey values, and what the commands find on the same data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import distill
from distill.core.errors import CheckpointError, DistillError
from distill.evaluation.metrics import score
from distill.python.models import METHODS, Segmentation
from distill.segmentation.agglomeration import waterz

PRECISE = {"device": "cpu", "precision": "32-true"}


@pytest.fixture(scope="module")
def grey(phantom: Path) -> NDArray[np.uint8]:
    """Five sections of 64 x 80 pixels."""
    return np.ascontiguousarray(distill.open_volume(f"{phantom}:volumes/raw").read()[:5, :64, :80])


@pytest.fixture(scope="module", params=["student", "teacher"])
def model(request: pytest.FixtureRequest, run: Path) -> distill.Model:
    """Both networks of a run."""
    return distill.load(run, network=request.param, **PRECISE)  # type: ignore[arg-type]


def test_a_model_says_what_it_is(run: Path) -> None:
    found = distill.load(run, network="teacher", **PRECISE)  # type: ignore[arg-type]
    assert (found.network, found.resolution) == ("teacher", (30.0, 6.0, 6.0))
    assert repr(found) == f"Model('{run}', teacher, trained on voxels of 30 x 6 x 6 nm, cpu, 32-true)"
    assert found.path.name == "teacher.safetensors"


def test_bundled_models_are_loaded_by_name() -> None:
    assert distill.load("ac4", **PRECISE).resolution == (30.0, 6.0, 6.0)  # type: ignore[arg-type]


def test_affinities_have_the_shape_and_range_of_affinities(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    found = model.affinities(grey)
    assert (found.shape, found.dtype) == ((3, *grey.shape), np.float32)
    assert 0 <= found.min() < found.max() <= 1


VARIANTS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "uint16": lambda raw: raw.astype(np.uint16) * 257,
    "int16": lambda raw: raw.astype(np.int16) - 100,
    "float32": lambda raw: raw.astype(np.float32) / 255,
    "float64": lambda raw: raw / 255,
    "big endian": lambda raw: (raw.astype(np.uint16) * 257).astype(">u2"),
    "Fortran order": np.asfortranarray,
    "reversed twice": lambda raw: np.ascontiguousarray(raw[:, ::-1])[:, ::-1],
    "every second of twice as many": lambda raw: np.repeat(raw, 2, axis=2)[:, :, ::2],
    "reversed sections": lambda raw: np.ascontiguousarray(raw[::-1])[::-1],
    "read-only": lambda raw: np.lib.stride_tricks.as_strided(raw, writeable=False),
    "nested lists": lambda raw: raw.astype(np.int64).tolist(),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_type_and_order_gives_the_same(variant: str, run: Path, grey: NDArray[np.uint8]) -> None:
    model = distill.load(run, **PRECISE)  # type: ignore[arg-type]
    wanted = model.affinities(grey, normalise="mean-std")
    found = model.affinities(VARIANTS[variant](grey), normalise="mean-std")
    np.testing.assert_allclose(found, wanted, atol=2 / 255)  # stored in steps of 1 / 255


def test_a_volume_and_its_path_give_the_same(model: distill.Model, phantom: Path) -> None:
    source = f"{phantom}:volumes/raw"
    volume = distill.open_volume(source)
    wanted = model.affinities(volume.read())
    np.testing.assert_array_equal(model.affinities(volume), wanted)
    np.testing.assert_array_equal(model.affinities(source), wanted)
    np.testing.assert_array_equal(model.affinities(Path(source)), wanted)


def test_the_array_is_left_as_it_was(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    before = grey.copy()
    model.segment(grey)
    np.testing.assert_array_equal(grey, before)


@pytest.mark.parametrize("method", [one for one in METHODS if one != "fragments"])
def test_every_method_segments(method: str, model: distill.Model, grey: NDArray[np.uint8]) -> None:
    found = model.segment(grey, method=method)  # type: ignore[arg-type]
    assert (found.labels.shape, found.labels.dtype) == (grey.shape, np.uint64)
    assert found.method == method
    assert found.resolution == (30.0, 6.0, 6.0)
    assert found.objects == len(set(np.unique(found.labels)) - {0}) > 0
    assert repr(found).startswith(f"Segmentation({found.objects} objects in 5 x 64 x 80 voxels by {method}")


def test_fragments_need_their_file(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    with pytest.raises(DistillError, match=r"fragments: .*expected"):
        model.segment(grey, method="fragments")


def test_the_threshold_is_used(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    some = model.segment(grey, method="waterz", merge=0.8)
    assert some.merge == 0.8
    np.testing.assert_array_equal(some.labels, waterz(some.affinity, [0.8])[0.8])


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("method", ["flood", "waterz", "mws"])
def test_segments_are_those_of_the_command(network: Any, method: Any, run: Path, phantom: Path, tmp_path: Path) -> None:
    """In one block and one window, which is how arrays of this size are segmented."""
    source, out = f"{phantom}:volumes/raw#box=0,0,0:4,48,48", tmp_path / "out.zarr"
    distill.segment(source, run, out, network=network, method=method, **PRECISE)  # type: ignore[arg-type]
    found = distill.load(run, network=network, **PRECISE).segment(source, method=method)  # type: ignore[arg-type]
    wanted = distill.open_labels(f"{out}:segmentation").read()
    assert score(found.labels, wanted).voi_sum == pytest.approx(0, abs=1e-9)
    assert found.objects == len(np.unique(wanted[wanted > 0]))


@pytest.mark.parametrize("method", ["flood", "query"])
@pytest.mark.parametrize("order", ["Fortran order", "reversed twice", "read-only"])
def test_memory_order_does_not_change_neurons(method: Any, order: str, run: Path, grey: NDArray[np.uint8]) -> None:
    model = distill.load(run, **PRECISE)  # type: ignore[arg-type]
    found, wanted = (model.segment(array, method=method) for array in (VARIANTS[order](grey), grey))
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_array_equal(found.affinity, wanted.affinity)


def test_booleans_are_refused(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    with pytest.raises(DistillError, match="bool"):
        model.affinities(grey > 100)


def test_a_resolution_replaces_that_of_a_volume(model: distill.Model, phantom: Path) -> None:
    volume = distill.open_volume(f"{phantom}:volumes/raw")
    with pytest.warns(UserWarning, match="has pixels of 12 x 12 nm, the model was trained on 6 x 6 nm"):
        assert model.segment(volume, resolution=(30, 12, 12)).resolution == (30, 12, 12)
    with pytest.raises(DistillError, match=r"found resolution .30\.0, 0\.0, 6\.0."):
        model.affinities(volume, resolution=(30, 0, 6))
    assert volume.resolution == (30, 6, 6)


@pytest.mark.parametrize("method", [one for one in METHODS if one != "fragments"])
def test_every_method_reports_progress(method: Any, model: distill.Model, grey: NDArray[np.uint8]) -> None:
    seen: list[tuple[int, int]] = []
    model.segment(grey, method=method, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_progress_counts_sections(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    seen: list[tuple[int, int]] = []
    model.affinities(grey, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_other_pixels_are_warned_of(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    with pytest.warns(UserWarning, match="raw has pixels of 12 x 12 nm, the model was trained on 6 x 6 nm"):
        model.affinities(grey, resolution=(30, 12, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.affinities(grey)
        model.affinities(grey, resolution=(30, 6, 6))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (np.zeros((64, 80), np.uint8), "raw: found"),
        (np.zeros((0, 64, 80), np.uint8), "raw.*(empty|voxel)"),
        (np.zeros((2, 3, 64, 80), np.uint8), "raw: found shape .2, 3, 64, 80., expected .z, y, x."),
        (np.full((3, 64, 80), np.nan), "NaN|not finite|finite"),
        (np.zeros((3, 64, 80), np.complex64), "complex64"),
    ],
)
def test_what_is_no_volume_of_grey_values(raw: NDArray[Any], text: str, model: distill.Model) -> None:
    with pytest.raises(DistillError, match=text):
        model.affinities(raw)


def test_options_are_checked_first(model: distill.Model, grey: NDArray[np.uint8]) -> None:
    with pytest.raises(DistillError, match="method: found 'watershed', expected one of flood"):
        model.segment(grey, method="watershed")  # type: ignore[arg-type]
    with pytest.raises(DistillError, match=r"merge: found 1\.5, expected a number from 0 to 1"):
        model.segment(grey, merge=1.5)
    with pytest.raises(DistillError, match="network: found 'both', expected student or teacher"):
        distill.load("ac4", network="both")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no-such-model"):
        distill.load("no-such-model")


def test_a_notebook_shows_the_middle_section() -> None:
    labels = np.zeros((3, 600, 700), np.uint64)
    labels[1, 100:, 200:] = 7
    found = Segmentation(labels, np.zeros((3, 3, 600, 700), np.float32), "flood", 0.3, None)
    shown = found._repr_html_()
    assert shown.startswith('<figure><img src="data:image/png;base64,')
    assert "section 1 of Segmentation(1 objects" in shown
    assert len(shown) < 100_000
