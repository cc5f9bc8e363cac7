"""Bad sections of a volume in blocks: the result is that of the volume without them, by every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from blocks_of_labels import Known, Setting
from numpy.typing import NDArray

import distill.inference.blockwise.worker as work_module
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box
from distill.core.labels import compact
from distill.core.timing import StageTimer
from distill.evaluation.metrics import score
from distill.inference.blockwise.bad_sections import BadSection, parse_bad, read_bad, remaining
from distill.inference.blockwise.corrections import Sections
from distill.inference.blockwise.networks import Solved
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.plan import Block
from distill.inference.blockwise.segment import segment
from distill.inference.blockwise.worker import Work
from distill.inference.options import Callbacks, Options
from distill.inference.review.review import review
from distill.io.volume import open_labels, open_volume

Make = Callable[[tuple[int, int, int]], Setting]
METHODS = ("flood", "query", "waterz", "mws")


class Reading(Known):
    """Reads labels through the sections of the plan, as networks do."""

    def solve(self, block: Block, sections: Sections, timer: StageTimer) -> Solved:
        """See `Instances.solve`."""

        class Plain:
            @staticmethod
            def read(box: Box) -> NDArray[np.uint8]:
                return np.rint(sections.read(box) * 255).astype(np.uint8)

        return super().solve(block, replace(sections, volume=Plain()), timer)  # type: ignore[arg-type]


def with_gaps(setting: Setting, gaps: list[int], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Insert blank sections at these places of the source; the network knows the others alone."""
    setting.known = Reading(setting.labels, method)
    whole = setting.labels
    for z in gaps:
        whole = np.insert(whole, z, 0, axis=0)
    setting.shape = (len(whole), *whole.shape[1:])
    with h5py.File(setting.source, "r+") as file:
        attributes = dict(file["volumes/raw"].attrs)
        del file["volumes/raw"]
        file["volumes/raw"] = whole
        file["volumes/raw"].attrs.update(attributes)

    def tools(work: Work) -> Any:
        unit = work.normaliser.of(np.zeros((1, 1), np.uint8))
        return work_module._Tools(Sections(setting.volume(), 0, [unit], work.remaining), setting.known)

    monkeypatch.setattr(work_module, "_tools", tools)
    plain = setting.work
    monkeypatch.setattr(
        "distill.inference.blockwise.segment._work",
        lambda request, *rest: replace(plain(request, *rest), policies=parse_bad(request.blocking.on_bad)),
    )


@pytest.mark.parametrize(
    ("method", "gaps"), [*((method, [0, 3, 4, 9]) for method in METHODS), ("flood", [2]), ("query", [3, 4, 5, 10, 11])]
)
def test_a_volume_with_gaps_is_the_volume_without_them(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, gaps: list[int]
) -> None:
    """Voxel by voxel, wherever the gaps lie in the blocks."""
    setting = make((7, 40, 40))
    setting.known.method = method
    setting.run(tmp_path / "without.zarr")
    with_gaps(setting, gaps, method, monkeypatch)
    notes: list[str] = []
    about = setting.run(tmp_path / "with.zarr", note=notes.append).about
    assert about["bad_sections"] == {str(z): "blank" for z in gaps}
    assert about["sections"] == 7 + len(gaps)
    assert about["empty"] == pytest.approx(len(gaps) / (7 + len(gaps)), abs=1e-6)
    assert notes[-len(gaps) :] == [f"section {z}: blank (100.0 % of its pixels are 0), bridge" for z in gaps]
    for name in ("affinity", "supervoxels", "segmentation"):
        found, wanted = (open_volume(f"{tmp_path / one}:{name}").read() for one in ("with.zarr", "without.zarr"))
        assert not found[..., gaps, :, :].any()
        np.testing.assert_array_equal(np.delete(found, gaps, axis=-3), wanted)
    if method in ("flood", "query"):
        whole, gone = (review(tmp_path / f"{name}.zarr", tmp_path / f"{name}.review") for name in ("with", "without"))
        assert [one.score for one in whole.queue] == [one.score for one in gone.queue]
        kept = np.delete(np.arange(about["sections"]), gaps)
        assert [one.z for one in whole.queue] == [kept[one.z] for one in gone.queue]


@pytest.mark.parametrize(
    ("method", "gaps", "words"),
    [
        ("flood", [4], ("skip",)),
        ("flood", [5], ("skip",)),
        ("query", [2, 3, 4, 5], ()),
        ("waterz", [4, 5], ("bridge", "blank=skip")),
        ("mws", [2, 3, 4, 5], ()),
    ],
)
def test_no_object_crosses_a_skipped_section(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    gaps: list[int],
    words: tuple[str, ...],
) -> None:
    """Nor more bad sections in a row than are bridged, at a border of blocks and inside one."""
    setting = make((7, 40, 40))
    with_gaps(setting, gaps, method, monkeypatch)
    setting.known.affinity[0, gaps[0]] = 0  # what networks give for a section without one before it
    about = setting.run(tmp_path / "out.zarr", on_bad=words).about
    assert about["bad_sections"] == {str(z): "blank" for z in gaps}
    found = open_labels(f"{tmp_path / 'out.zarr'}:segmentation").read()
    before, after = found[: gaps[0]], found[gaps[-1] + 1 :]
    assert not found[gaps].any()
    assert before.all()
    assert after.all()
    assert not set(np.unique(before)) & set(np.unique(after))
    assert {one.taken for one in read_bad(tmp_path / "out.zarr") or []} == {"skip"}


def test_an_interrupted_segmentation_with_gaps_is_continued(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make((7, 40, 40))
    with_gaps(setting, [3], "query", monkeypatch)
    setting.run(tmp_path / "whole.zarr")
    setting.known.fails = {5: 9}
    with pytest.raises(DistillError, match="block 5"):
        setting.run(tmp_path / "out.zarr")
    setting.known.fails = {}
    done = len(setting.known.solved)
    setting.run(tmp_path / "out.zarr", resume=True)
    assert setting.known.solved[done:] == [5]
    for name in ("supervoxels", "segmentation"):
        found, wanted = (open_volume(f"{tmp_path / one}.zarr:{name}").read() for one in ("out", "whole"))
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(SourceError, match=r'was begun with on_bad .*"blank": "bridge"'):
        setting.run(tmp_path / "out.zarr", resume=True, on_bad=("skip",))


def test_bad_sections_that_are_not_to_be_left_out(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = make((7, 40, 40))
    with_gaps(setting, [3], "flood", monkeypatch)
    with pytest.raises(SourceError, match=r"section 3 is bad: blank .* or use --on-bad blank=bridge \(or skip\)"):
        setting.run(tmp_path / "out.zarr", on_bad=("fail",))
    assert not (tmp_path / "out.zarr").exists()
    setting.known = Known(np.insert(setting.labels, 3, 0, axis=0), "flood")
    about = setting.run(tmp_path / "out.zarr", on_bad=("use",)).about
    assert "bad_sections" not in about
    assert open_labels(f"{tmp_path / 'out.zarr'}:segmentation").read().all()


def test_policies_and_sections_that_remain() -> None:
    assert dict(parse_bad([]))["blank"] == "bridge"
    assert set(dict(parse_bad([])).values()) == {"bridge", "use"}
    assert dict(parse_bad(["skip", "contrast=use"])) == dict.fromkeys(dict(parse_bad([])), "skip") | {"contrast": "use"}
    with pytest.raises(DistillError, match=r"--on-bad: found 'ignore', expected one of fail, skip, bridge, use"):
        parse_bad(["ignore"])
    with pytest.raises(DistillError, match=r"--on-bad: found 'dirty', expected one of missing, corrupt, size, blank"):
        parse_bad(["dirty=skip"])
    assert remaining(3, []) is None
    bad = [BadSection(2, "blank", "", "bridge"), BadSection(4, "blank", "", "skip")]
    found = remaining(7, bad)
    assert found is not None
    assert found.good == (0, 1, 3, 5, 6)
    assert found.cuts == (3,)
    assert [found.start_of(at) for at in range(5)] == [0, 0, 0, 3, 3]
    box = Box((1, 0, 0), (5, 4, 4))
    assert [(run.start[0], run.stop[0]) for run in found.runs(box)] == [(1, 3), (3, 5)]
    there, at = found.within(Box((2, 0, 0), (6, 4, 4)))
    assert (there.start[0], there.stop[0], at.tolist()) == (2, 4, [1, 3])


@pytest.mark.parametrize("method", METHODS)
def test_a_blank_section_does_not_cut_neurons(run: Path, phantom: Path, tmp_path: Path, method: str) -> None:
    """A student on a phantom: VOI of the other sections with and without the gap, in slabs of five sections."""
    pytest.importorskip({"waterz": "waterz", "mws": "mwatershed"}.get(method, "numba"))
    with h5py.File(phantom) as file:
        raw, truth = file["volumes/raw"][:13], file["volumes/labels/neuron_ids"][:13]
    options = Options(resolution=(30, 6, 6), device="cpu", precision="32-true", backend="eager")
    scores = []
    for blank in ([], [6]):
        raw[blank] = 0
        folder = tmp_path / f"sections{len(blank)}"
        folder.mkdir()
        for z, section in enumerate(raw):
            tifffile.imwrite(folder / f"{z:03d}.tif", section)
        out = tmp_path / f"{len(blank)}.zarr"
        segment(str(folder), str(run), out, options, Blocking(method=method), Callbacks())  # type: ignore[arg-type]
        found = np.delete(open_labels(f"{out}:segmentation").read(), 6, axis=0)
        scores.append(score(compact(found), np.delete(truth, 6, axis=0)).voi_sum)
    assert abs(scores[0] - scores[1]) < 0.1, scores


def test_an_unreadable_section_is_bridged_where_it_is_asked_for(run: Path, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sections"
    folder.mkdir()
    with h5py.File(phantom) as file:
        for z, section in enumerate(file["volumes/raw"][:7]):
            tifffile.imwrite(folder / f"{z:03d}.tif", section)
    whole = (folder / "003.tif").read_bytes()
    (folder / "003.tif").write_bytes(whole[: len(whole) // 2])
    options = Options(resolution=(30, 6, 6), device="cpu", precision="32-true", backend="eager")
    with pytest.raises(SourceError, match=r"003\.tif"):
        segment(str(folder), str(run), tmp_path / "out.zarr", options, Blocking(), Callbacks())
    found = segment(
        str(folder), str(run), tmp_path / "out.zarr", options, Blocking(on_bad=("corrupt=bridge",)), Callbacks()
    )
    assert found.about["bad_sections"] == {"3": "corrupt"}
    labels = open_labels(f"{tmp_path / 'out.zarr'}:segmentation").read()
    assert not labels[3].any()
    assert set(np.unique(labels[2])) & set(np.unique(labels[4])) - {0}


def test_a_store_from_before_bad_sections_were_looked_for_is_continued_as_it_was_begun(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, out = make((5, 40, 40)), tmp_path / "out.zarr"
    with_gaps(setting, [3], "flood", monkeypatch)
    setting.known = Known(np.insert(setting.labels, 3, 0, axis=0), "flood")
    setting.known.fails = {2: 9}
    with pytest.raises(DistillError, match="block 2"):
        setting.run(out, on_bad=("use",))
    job = out / "blocks" / "job.json"
    settings = json.loads(job.read_text())
    del settings["on_bad"]
    job.write_text(json.dumps(settings))
    setting.known.fails = {}
    done = len(setting.known.solved)
    about = setting.run(out, resume=True).about
    assert setting.known.solved[done:] == [2]
    assert "bad_sections" not in about
    assert open_labels(f"{out}:segmentation").read()[3].all()
