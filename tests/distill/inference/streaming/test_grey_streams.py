"""Streams of sections whose grey values are recorded in other ways give what the sections themselves give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.normalisation import Normalisation, Normaliser
from distill.inference.grey_values import GreyValues
from distill.inference.options import Options
from distill.inference.streaming.sections.quality import Inspector
from distill.inference.streaming.stream import Streamed
from distill.io.volume import open_volume

Go = Callable[..., Streamed]
Raw = NDArray[Any]
Embedded = Callable[..., NDArray[np.float32]]
OPTIONS = Options(resolution=(30.0, 6.0, 6.0), device="cpu", precision="32-true", backend="eager")


def written(folder: Path, sections: Raw, **tags: Any) -> Path:
    folder.mkdir()
    for z, section in enumerate(sections):
        tifffile.imwrite(folder / f"s_{z:03d}.tif", section, **tags)
    return folder


@pytest.fixture(scope="module")
def embedding(go: Go, raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """The student's embedding of five sections (E, D, H, W), as written by a change of them."""

    def of(change: Callable[[Raw], Raw], grey: GreyValues | None = None, **more: Any) -> NDArray[np.float32]:
        folder = tmp_path_factory.mktemp("grey")
        tags = {key: more.pop(key) for key in list(more) if key == "photometric"}
        source = written(folder / "sections", change(raw[:5]), **tags)
        options = replace(OPTIONS, grey=grey or GreyValues())
        found = go(source, folder / "out.zarr", options=options, segment=False, embedding="float16", **more)
        assert found.bad == []
        return open_volume(f"{folder / 'out.zarr'}:embedding").read().astype(np.float32)

    return of


@pytest.fixture(scope="module")
def plain(embedding: Embedded) -> NDArray[np.float32]:
    return embedding(lambda raw: raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.astype(np.uint16) * 16,
        lambda raw: (raw.astype(np.int32) - 2**15).astype(np.int16),
        lambda raw: raw.astype(np.float32) * 3 - 400,
        lambda raw: (raw // 3 + np.array([9, 90, 40, 70, 0])[:, None, None]).astype(np.uint8),
    ],
    ids=["12 bits in 16", "signed", "floats", "every section darker or brighter"],
)
def test_range_and_brightness(embedding: Embedded, plain: NDArray[np.float32], change: Callable[[Raw], Raw]) -> None:
    far = np.abs(embedding(change) - plain)
    coarse = change(np.zeros((5, 1, 1), np.uint8)).dtype == np.uint8  # grey values in steps of three
    assert far.mean() < (0.02 if coarse else 1e-4) < 0.1 < np.abs(plain).mean()


def test_inverted_sections(embedding: Embedded, plain: NDArray[np.float32]) -> None:
    inverted = embedding(lambda raw: 255 - raw, GreyValues(invert=True))
    assert np.abs(inverted - plain).mean() < 1e-4
    tagged = embedding(lambda raw: 255 - raw, photometric="miniswhite")
    np.testing.assert_array_equal(tagged, inverted)
    assert np.abs(embedding(lambda raw: 255 - raw) - plain).mean() > 0.005  # as they are


def test_tiles_are_normalised_as_whole_sections(embedding: Embedded, plain: NDArray[np.float32]) -> None:
    for kind in ("mean-std", "local"):
        whole = plain if kind == "mean-std" else embedding(lambda raw: raw, GreyValues(kind))
        tiled = embedding(lambda raw: raw, GreyValues(kind), tile=64)
        np.testing.assert_allclose(tiled, whole, atol=2e-3)  # one step of float16


def test_a_type_without_a_range_needs_a_normalisation(go: Go, raw: Raw, tmp_path: Path) -> None:
    signed = written(tmp_path / "signed", raw[:3].astype(np.int16))
    options = replace(OPTIONS, grey=GreyValues("none"))
    with pytest.raises(SourceError, match=r"found int16, expected uint8, .* with --normalise mean-std any range"):
        go(signed, tmp_path / "out.zarr", options=options)
    wide = written(tmp_path / "wide", raw[:3].astype(np.float32))
    with pytest.raises(SourceError, match=r"s_000.tif: raw: found grey values from .*, expected floats from 0 to 1"):
        go(wide, tmp_path / "out.zarr", options=options)
    assert not (tmp_path / "out.zarr").exists()


def test_another_normalisation_does_not_resume(go: Go, folder: Path, whole: Path) -> None:
    options = replace(OPTIONS, grey=GreyValues("percentile"))
    with pytest.raises(SourceError, match=r"was begun with normalisation .*mean-std.*, found .*percentile"):
        go(folder, whole, options=options, resume=True)
    with pytest.raises(SourceError, match=r"was begun with invert false, found true"):
        go(folder, whole, options=replace(OPTIONS, grey=GreyValues(invert=True)), resume=True)


def test_brightness_is_judged_as_the_network_sees_it(raw: Raw) -> None:
    sections = [*raw[:9], (raw[9] // 3 + 150).astype(np.uint8), *raw[10:13]]
    normaliser = Normaliser(Normalisation())
    recorded, seen = Inspector(), Inspector()
    assert [z for z, one in enumerate(sections) if recorded.look(one, None)] == [9]
    assert [z for z, one in enumerate(sections) if seen.look(one, None, normaliser.of(one))] == []
