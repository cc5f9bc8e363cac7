"""Bad sections are found, good ones are not called bad, and what becomes of either is as asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from distill.core.errors import DistillError, SourceError
from distill.inference.options import Options
from distill.inference.streaming.options import parse_policies
from distill.inference.streaming.plan import StreamPart
from distill.inference.streaming.sections.quality import DEFECT_KINDS, PAST, Flaw, Inspector
from distill.inference.streaming.stream import Streamed
from distill.io.volume import open_volume

Go = Callable[..., Streamed]
NM = (30.0, 6.0, 6.0)


def found(sections: list[NDArray[Any]]) -> dict[int, str]:
    inspector = Inspector()
    flaws = [inspector.look(section, None) for section in sections]
    return {z: flaw.kind for z, flaw in enumerate(flaws) if flaw is not None}


@pytest.mark.parametrize("name", ["ac4_sections", "vnc_stack1.tif", "ac4_quadrant.h5", "fib25_medulla.h5"])
def test_no_false_alarm_on_real_sections(real_data: Callable[[str], Path], name: str) -> None:
    volume = open_volume(real_data(name), resolution=NM)
    assert found(list(volume.sections(0, min(40, volume.size[0])))) == {}


@pytest.mark.parametrize("name", ["ac4_sections", "vnc_stack1.tif"])
def test_planted_flaws_are_found_where_they_are(real_data: Callable[[str], Path], name: str) -> None:
    sections = list(open_volume(real_data(name), resolution=NM).sections(0, 14))
    height = sections[0].shape[0]
    planted: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        "blank": np.zeros_like,
        "saturated": lambda s: np.clip(3.0 * s, 0, 255).astype(np.uint8),
        "contrast": lambda s: (0.5 * s).astype(np.uint8),
        "position": lambda s: np.roll(s, height // 10, 0),
    }
    planted["position "] = lambda s: np.roll(s, (height // 3, height // 4), (0, 1))
    planted["contrast "] = lambda s: ((s - s.mean()) * 0.4 + s.mean()).astype(np.uint8)
    for kind, change in planted.items():
        changed = [change(section) if z == 9 else section for z, section in enumerate(sections)]
        assert found(changed) == {9: kind.strip()}, kind


def test_what_lasts_is_told_once(real_data: Callable[[str], Path]) -> None:
    """A stage that was moved, or a detector with new settings, is one bad section, not all that follow."""
    sections = list(open_volume(real_data("ac4_sections"), resolution=NM).sections(0, 20))
    darker = [(0.6 * s).astype(np.uint8) if z >= 9 else s for z, s in enumerate(sections)]
    assert found(darker) == {9: "contrast"}
    moved = [np.roll(s, 150, 1) if z >= 9 else s for z, s in enumerate(sections)]
    assert found(moved) == {9: "position"}


def test_verdicts_follow_from_the_recent_past_alone(real_data: Callable[[str], Path]) -> None:
    sections: list[NDArray[Any] | None] = list(open_volume(real_data("ac4_sections"), resolution=NM).sections())
    changes: list[tuple[int, Callable[[Any], Any]]] = [
        (3, np.zeros_like),
        (8, lambda s: (0.5 * s).astype(np.uint8)),
        (15, lambda s: np.roll(s, 200, 0)),
    ]
    for z, change in changes:
        sections[z] = change(sections[z])
    sections[11] = None

    def verdicts(start: int) -> list[Flaw | None]:
        inspector = Inspector()
        return [inspector.look(s, None if s is not None else Flaw("corrupt", "")) for s in sections[start:]]

    whole = verdicts(0)
    assert [z for z, flaw in enumerate(whole) if flaw] == [3, 8, 11, 15]
    for start in (1, 4, 6):
        assert verdicts(start)[2 * PAST :] == whole[start + 2 * PAST :]


def padded(section: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """A section whose left columns are black."""
    changed = section.copy()
    changed[:, : round(share * section.shape[1])] = 0
    return changed


MADE: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8] | None]] = [
    lambda s: s,
    lambda s: padded(s, 0.3),
    lambda s: padded(s, 0.55),
    lambda s: padded(s, 0.8),
    lambda s: np.where(np.arange(s.size).reshape(s.shape) % 3 > 0, 255, s).astype(np.uint8),
    lambda s: np.zeros_like(s),
    lambda s: (0.5 * s).astype(np.uint8),
    lambda s: np.roll(s, s.shape[0] // 3, 0),
    lambda s: None,
]


@given(
    kinds=st.lists(st.integers(0, len(MADE) - 1), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 12), min_size=8, max_size=8),
    start=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_a_resume_and_a_range_say_what_an_unbroken_stream_says(
    kinds: list[int], lengths: list[int], start: int
) -> None:
    rng, sections = np.random.default_rng(0), []
    for kind, length in zip(kinds, lengths, strict=False):
        for _ in range(length):
            drawn = gaussian_filter(rng.standard_normal((48, 48)), 1.5)
            sections.append(MADE[kind](np.clip(120 + 30 * drawn / drawn.std(), 1, 254).astype(np.uint8)))

    def verdicts(first: int) -> list[Flaw | None]:
        inspector = Inspector()
        return [inspector.look(s, None if s is not None else Flaw("corrupt", "")) for s in sections[first:]]

    assert verdicts(start)[2 * PAST :] == verdicts(0)[start + 2 * PAST :]


@given(kinds=st.lists(st.integers(0, len(MADE) - 1), min_size=1, max_size=24), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_verdict_by_comparison_with_fewer_than_three_sections(kinds: list[int], seed: int) -> None:
    """Sections that cannot be read, or show nothing, are none to compare with."""
    rng, sections = np.random.default_rng(seed), []
    for kind in kinds:
        drawn = gaussian_filter(rng.standard_normal((48, 48)), 1.5)
        sections.append(MADE[kind](np.clip(120 + 30 * drawn / drawn.std(), 1, 254).astype(np.uint8)))
    inspector = Inspector()
    flaws = [inspector.look(s, None if s is not None else Flaw("corrupt", "")) for s in sections]
    for z, flaw in enumerate(flaws):
        if flaw is not None and flaw.kind in ("saturated", "contrast", "position"):
            shown = [one for one in flaws[max(0, z - PAST) : z] if one is None or one.kind not in ("corrupt", "blank")]
            assert len(shown) >= 3, (z, flaw)


def test_padding_is_no_flaw_however_a_stream_begins() -> None:
    rng = np.random.default_rng(1)
    fields = [gaussian_filter(rng.standard_normal((96, 96)), 2) for _ in range(30)]
    sections = [np.clip(120 + 30 * one / one.std(), 1, 254).astype(np.uint8) for one in fields]
    kinds = {"position", "contrast"}  # noise is its own place
    assert set(found([padded(one, 0.55) for one in sections]).values()) <= kinds
    grown = [padded(one, 0.3 + 0.3 * z / 29) for z, one in enumerate(sections)]
    assert set(found(grown).values()) <= kinds
    assert set(found(grown[25:]).values()) <= kinds
    white = np.full_like(sections[0], 255)
    white[::3] = sections[0][::3]
    assert found([*sections[:2], white]) == {}  # nothing to compare it with
    assert found([*sections[:3], white])[3] == "saturated"


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_types_of_grey_values(dtype: Any, raw: NDArray[np.uint8]) -> None:
    scale = 257 if dtype == np.uint16 else 1 / 255
    sections = [(section.astype(np.float64) * scale).astype(dtype) for section in raw]
    assert found(sections) == {}
    sections[9] = np.zeros_like(sections[9])
    if dtype == np.float32:
        sections[12] = np.where(np.eye(96) > 0, np.nan, sections[12]).astype(dtype)
        assert found(sections) == {9: "blank", 12: "corrupt"}
    else:
        assert found(sections) == {9: "blank"}


def test_policies() -> None:
    assert set(parse_policies(()).values()) == {"fail"}
    assert parse_policies(("skip", "missing=bridge,blank=fail")) == dict.fromkeys(DEFECT_KINDS, "skip") | {
        "missing": "bridge",
        "blank": "fail",
    }
    with pytest.raises(DistillError, match="--on-bad: found 'ignore', expected one of fail, skip, bridge"):
        parse_policies(("ignore",))
    with pytest.raises(DistillError, match="--on-bad: found 'black', expected one of missing, corrupt"):
        parse_policies(("black=skip",))


@pytest.fixture
def flawed(folder: Path) -> Path:
    """Of 13 sections, 4 is cut off, 6 (the border of two slabs of 3) is missing, 10 black."""
    path = folder / "s_004.tif"
    path.write_bytes(path.read_bytes()[:4000])
    (folder / "s_006.tif").unlink()
    tifffile.imwrite(folder / "s_010.tif", np.zeros((96, 96), np.uint8))
    return folder


def test_fail_names_the_section_and_can_be_gone_on_with(go: Go, flawed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(SourceError, match=r"s_004.tif: section 4 is bad: corrupt .*--resume --on-bad corrupt=skip"):
        go(flawed, out)
    with pytest.raises(SourceError, match=r"section 6 is bad: missing \(no file follows s_005.tif\)"):
        go(flawed, out, resume=True, on_bad=("corrupt=skip",))
    said = go(flawed, out, resume=True, on_bad=("skip",))
    assert [(line.section, line.flaw, line.taken) for line in said.bad] == [
        (4, "corrupt", "skip"),
        (6, "missing", "skip"),
        (10, "blank", "skip"),
    ]
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["section"] for line in lines if line["flaw"]] == [4, 6, 10]


def affinity_of(go: Go, images: list[NDArray[Any]], folder: Path, out: Path) -> NDArray[Any]:
    """Affinities of a stream over these sections alone, none of which is judged."""
    folder.mkdir()
    for z, image in enumerate(images):
        tifffile.imwrite(folder / f"s{z}.tif", image)
    go(folder, out, segment=False)
    return open_volume(f"{out}:affinity").read()


def test_skip_leaves_the_place_empty_and_pairs_nothing_over_it(
    go: Go, flawed: Path, tmp_path: Path, raw: NDArray[np.uint8]
) -> None:
    go(flawed, tmp_path / "out.zarr", on_bad=("skip",))
    affinity = open_volume(f"{tmp_path / 'out.zarr'}:affinity").read()
    labels = open_volume(f"{tmp_path / 'out.zarr'}:segmentation").read()
    for number, (first, stop) in enumerate(((0, 4), (5, 6), (7, 10), (11, 13))):
        alone = affinity_of(go, list(raw[first:stop]), tmp_path / f"{number}", tmp_path / f"{number}.zarr")
        np.testing.assert_array_equal(affinity[:, first:stop], alone)
        assert labels[first:stop].min() > 0
    for z in (4, 6, 10):
        assert not affinity[:, z].any()
        assert not labels[z].any()
    rows = [set(np.unique(labels[first:stop])) for first, stop in ((0, 4), (5, 6), (7, 10), (11, 13))]
    assert sum(map(len, rows)) == len(set.union(*rows))  # nothing is one over a place that was skipped


def test_bridge_pairs_the_neighbours(go: Go, flawed: Path, tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    go(flawed, tmp_path / "out.zarr", on_bad=("bridge",))
    affinity = open_volume(f"{tmp_path / 'out.zarr'}:affinity").read()
    labels = open_volume(f"{tmp_path / 'out.zarr'}:segmentation").read()
    good = [z for z in range(13) if z not in (4, 6, 10)]
    alone = affinity_of(go, [raw[z] for z in good], tmp_path / "good", tmp_path / "good.zarr")
    np.testing.assert_array_equal(affinity[:, good], alone)
    assert not labels[[4, 6, 10]].any()
    assert labels[good].min() > 0
    assert set(np.unique(labels[5])) & set(np.unique(labels[3]))
    assert set(np.unique(labels[7])) & set(np.unique(labels[5]))


@pytest.mark.parametrize("policy", ["skip", "bridge"])
def test_bad_sections_in_ranges_and_after_an_interruption(
    go: Go,
    flawed: Path,
    tmp_path: Path,
    files_of: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    from distill.inference.streaming.finish import finish
    from distill.inference.streaming.output.writer import Journal

    go(flawed, tmp_path / "whole.zarr", on_bad=(policy,))
    wanted = files_of(tmp_path / "whole.zarr")
    for index in (2, 0, 1):
        go(flawed, tmp_path / "parts.zarr", on_bad=(policy,), part=StreamPart(index, 3))
    finish(tmp_path / "parts.zarr", None)
    mine = files_of(tmp_path / "parts.zarr")
    for name in wanted:
        if not name.startswith(("stream/manifest", "stream/job")):
            assert mine[name] == wanted[name], name
    append = Journal.append
    for stop in (1, 2, 3):
        calls: list[int] = []

        def failing(self: Journal, lines: Any, stop: int = stop, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) > stop:
                raise RuntimeError("broken")
            append(self, lines)

        out = tmp_path / f"{stop}.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", failing)
            with pytest.raises(RuntimeError, match="broken"):
                go(flawed, out, on_bad=(policy,))
        go(flawed, out, on_bad=(policy,), resume=True)
        assert files_of(out) == wanted


def test_nothing_is_paired_over_many_bad_sections(go: Go, folder: Path, tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    for z in (3, 4, 5, 6):
        tifffile.imwrite(folder / f"s_{z:03d}.tif", np.zeros((96, 96), np.uint8))
    said = go(folder, tmp_path / "out.zarr", on_bad=("bridge",), segment=False)
    assert [line.taken for line in said.bad] == ["bridge", "bridge", "bridge", "skip"]
    affinity = open_volume(f"{tmp_path / 'out.zarr'}:affinity").read()
    assert not affinity[0, 7].any()
    options = Options(NM, (7, 13), "cpu", "32-true", None, False, "eager")
    go(folder, tmp_path / "rest.zarr", options=options, segment=False)
    np.testing.assert_array_equal(affinity[:, 7:], open_volume(f"{tmp_path / 'rest.zarr'}:affinity").read())
