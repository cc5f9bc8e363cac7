"""A stream's store is the same for any number of interruptions and processes."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from killing import Killed, killed_at

import distill.inference.streaming.output.writer as writer_module
from distill.core.affinity import NEAREST
from distill.core.claim import claim
from distill.core.errors import SourceError
from distill.core.labels import compact
from distill.inference.options import Options
from distill.inference.streaming.finish import finish
from distill.inference.streaming.output.manifest import all_lines, read_lines
from distill.inference.streaming.output.store import StreamStore
from distill.inference.streaming.plan import StreamPart
from distill.inference.streaming.stream import Streamed
from distill.io.volume import open_labels, open_volume
from distill.io.writers.pyramid import add_levels

Go = Callable[..., Streamed]
Files = Callable[[Path], dict[str, bytes]]
NM = (30.0, 6.0, 6.0)


def stops_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    """Break off in the middle of writing, at the n-th thing that is written."""
    steps = itertools.count()
    for name in ("write_layer", "write_supervoxels", "write_slab_table", "append"):
        holder: Any = writer_module if name == "write_slab_table" else StreamStore
        if name == "append":
            holder = writer_module.Journal
        original = getattr(holder, name)

        def failing(*given: Any, original: Callable[..., Any] = original) -> Any:
            if next(steps) == count:
                raise error
            return original(*given)

        monkeypatch.setattr(holder, name, failing)


@pytest.mark.parametrize("count", [4, 5, 7, 14, 17])
def test_broken_off_and_gone_on_with(
    go: Go, sections: Path, whole: Path, tmp_path: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    out = tmp_path / "again.zarr"
    with monkeypatch.context() as patch:
        stops_after(patch, count, OSError(28, "No space left on device"))
        with pytest.raises((SourceError, OSError), match="No space left on device"):
            go(sections, out)
    assert len(all_lines(out)) == count // 4 * 3
    go(sections, out, resume=True)
    assert files_of(out) == files_of(whole)


def test_nothing_done_leaves_nothing(go: Go, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops_after(monkeypatch, 2, RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        go(folder, tmp_path / "out.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["sections"]


def test_overwriting_keeps_the_old_until_the_new_is_finished(
    go: Go, sections: Path, whole: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, again = files_of(whole), Options(NM, (2, 9), "cpu", "32-true", None, True, "eager")
    with pytest.raises(SourceError, match=r"exists already; expected a new path, or --overwrite"):
        go(sections, whole)
    for count, kept in ((1, ["whole.zarr"]), (5, ["whole.zarr", "whole.zarr.replaced"])):
        with monkeypatch.context() as patch:
            stops_after(patch, count, RuntimeError("broken"))
            with pytest.raises(RuntimeError, match="broken"):
                go(sections, whole, options=again)
        assert sorted(path.name for path in whole.parent.iterdir()) == kept
        assert files_of(whole.parent / kept[-1]) == before
    go(sections, whole, options=Options(NM, (2, 9), "cpu", "32-true", None, False, "eager"), resume=True)
    assert sorted(path.name for path in whole.parent.iterdir()) == ["whole.zarr"]
    assert open_volume(f"{whole}:affinity").size == (7, 96, 96)


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_ranges_make_the_same_store(
    go: Go, sections: Path, whole: Path, tmp_path: Path, files_of: Files, parts: int
) -> None:
    out = tmp_path / "parts.zarr"
    order = np.random.default_rng(parts).permutation(parts)
    for done, index in enumerate(order):
        if done:
            with pytest.raises(SourceError, match=r"sections done, but not .* to .*; expected all"):
                finish(out, None)
        go(sections, out, part=StreamPart(int(index), parts))
    finish(out, None)
    mine, theirs = files_of(out), files_of(whole)
    for name in {*mine, *theirs} - {"stream/job.json"}:
        if not name.startswith("stream/manifest-"):
            assert mine[name] == theirs[name], name
    assert mine.keys() - theirs.keys() <= {f"stream/manifest-{k:08d}.jsonl" for k in range(5)}


def test_a_stream_of_another_device_goes_on(
    go: Go, sections: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch and backend follow from the device; on the same one they decide what is written."""
    out = tmp_path / "out.zarr"
    with monkeypatch.context() as patch:
        stops_after(patch, 10, RuntimeError("broken"))
        with pytest.raises(RuntimeError, match="broken"):
            go(sections, out)
    path = out / "stream" / "job.json"
    begun = json.loads(path.read_text())
    path.write_text(json.dumps(begun | {"batch": 8}))
    with pytest.raises(SourceError, match=r"was begun with batch 8, found 1; expected the same"):
        go(sections, out, resume=True)
    path.write_text(json.dumps(begun | {"batch": 8, "device": "cuda", "backend": "compile", "hardware": "a GPU"}))
    go(sections, out, options=Options(NM, None, "cpu", "32-true"), resume=True)
    assert open_volume(f"{out}:affinity").size == (13, 96, 96)
    np.testing.assert_array_equal(labels_of(out), labels_of(whole))


def labels_of(out: Path) -> Any:
    return compact(open_labels(f"{out}:segmentation").read())


def test_a_range_is_not_done_twice(go: Go, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts.zarr"
    go(folder, out, part=StreamPart(0, 2))
    with pytest.raises(SourceError, match=r"found 6 sections of range 0/2 done, expected --resume"):
        go(folder, out, part=StreamPart(0, 2))
    with pytest.raises(SourceError, match=r"was begun with parts 2, found 3; expected the same"):
        go(folder, out, part=StreamPart(0, 3))


def test_finish_leaves_no_levels_of_what_was_there(whole: Path) -> None:
    add_levels(f"{whole}:segmentation", 2, None, False, lambda done, total: None)
    assert (whole / "levels" / "segmentation" / "1").exists()
    finish(whole, 0.9)
    assert not (whole / "levels").exists()
    images = json.loads((whole / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert [[one["path"] for one in image["datasets"]] for image in images] == [
        ["segmentation"],
        ["supervoxels"],
        ["affinity"],
    ]


@pytest.mark.parametrize("merge", [None, 0.2, 0.9])
def test_finish_again_with_another_threshold(go: Go, sections: Path, whole: Path, tmp_path: Path, merge: float) -> None:
    finish(whole, merge)
    other = tmp_path / "other.zarr"
    go(sections, other, options=Options(NM, None, "cpu", "32-true", merge, False, "eager"))
    a, b = (open_labels(f"{path}:segmentation").read() for path in (whole, other))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(compact(a), a)


def test_kill_at_any_moment(
    words: Callable[..., list[str]],
    launch: Callable[..., Any],
    sections: Path,
    whole: Path,
    tmp_path: Path,
    files_of: Files,
) -> None:
    """SIGKILL as soon as so many lines are there, twice in one stream."""
    out = tmp_path / "killed.zarr"
    for lines in (3, 9):
        running = launch(words(sections, out, "--resume"))
        manifest = out / "stream" / "manifest-00000000.jsonl"
        while running.poll() is None and len(read_lines(manifest)) < lines:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=300)
    running = launch(words(sections, out, "--resume"))
    _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert files_of(out) == files_of(whole)


def test_two_processes_at_one_store(go: Go, sections: Path, whole: Path) -> None:
    from distill.inference.streaming.output.manifest import Journal

    journal = Journal(whole, 0)
    try:
        with pytest.raises(SourceError, match="another process is writing to this range"):
            go(sections, whole, resume=True)
    finally:
        journal.close()
    go(sections, whole, resume=True)


def test_overwriting_waits_for_nobody_and_takes_nothing_from_a_running_stream(
    go: Go, sections: Path, whole: Path, files_of: Files
) -> None:
    before, again = files_of(whole), Options(NM, None, "cpu", "32-true", None, True, "eager")
    with claim(whole):
        for more in ({"options": again}, {"resume": True}, {"resume": True, "part": StreamPart(0, 2)}):
            with pytest.raises(SourceError, match=r"whole\.zarr: another process is writing to it: this one"):
                go(sections, whole, **more)
        with pytest.raises(SourceError, match="another process is writing to it"):
            finish(whole, None)
        with pytest.raises(SourceError, match="another process is writing to it"):
            add_levels(f"{whole}:segmentation", 2, None, False, lambda done, total: None)
    assert files_of(whole) == before
    assert sorted(path.name for path in whole.parent.iterdir()) == ["whole.zarr"]


def test_a_finished_store_outlives_an_older_one_that_was_kept_aside(
    go: Go, sections: Path, whole: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of two stores is finished comes back, also where the end came by `distill finish`."""
    before, again = files_of(whole), Options(NM, None, "cpu", "32-true", 0.9, True, "eager")
    older = whole.with_name("whole.zarr.replaced")
    older.mkdir()
    (older / "zarr.json").write_text("{}")
    with monkeypatch.context() as patch:
        stops_after(patch, 5, RuntimeError("broken"))
        with pytest.raises(RuntimeError, match="broken"):
            go(sections, whole, options=again)
    assert files_of(older) == before  # not the one of before it
    with monkeypatch.context() as patch:
        stops_after(patch, 5, RuntimeError("broken"))
        with pytest.raises(RuntimeError, match="broken"):
            go(sections, whole, options=again)  # over a store that is not finished
    assert files_of(older) == before
    with monkeypatch.context() as patch:
        patch.setattr("distill.inference.streaming.stream.finish_claimed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(sections, whole, resume=True)
    assert older.exists()
    finish(whole, None)
    assert sorted(path.name for path in whole.parent.iterdir()) == ["whole.zarr"]


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_operation_with_any_threshold_it_ends_as_an_unbroken_stream(
    go: Go, sections: Path, whole: Path, tmp_path: Path, files_of: Files, seed: int
) -> None:
    rng, out, wanted = random.Random(seed), tmp_path / "killed.zarr", {}

    def options(merge: float) -> Options:
        return Options(NM, None, "cpu", "32-true", merge, False, "eager")

    for merge in (0.2, 0.9):
        finish(whole, merge)
        wanted[merge] = files_of(whole)
    for _ in range(4):
        with killed_at(rng.randrange(200)), suppress(Killed):
            go(sections, out, options=options(rng.choice((0.2, 0.9))), resume=True)
    go(sections, out, options=options(last := rng.choice((0.2, 0.9))), resume=True)
    found = files_of(out)
    assert {name for name in found if found[name] != wanted[last].get(name)} <= {"stream/job.json"}, seed
    assert found.keys() == wanted[last].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.zarr", "whole.zarr"]


@pytest.mark.slow
def test_the_last_pass_killed_at_every_operation_with_another_threshold(
    whole: Path, tmp_path: Path, files_of: Files
) -> None:
    """Whatever is left of it, the next pass gives what it would have given without it."""
    wanted = {}
    for merge in (0.9, 0.2):
        finish(whole, merge)
        wanted[merge] = files_of(whole)
    assert wanted[0.2] != wanted[0.9]
    with killed_at(-1) as counted:
        finish(whole, 0.9)
    assert counted.count > 10
    for at in range(counted.count):
        killed, last = ((0.2, 0.9), (0.9, 0.2), (0.9, 0.9))[at % 3]
        with killed_at(at), pytest.raises(Killed):
            finish(whole, killed)
        finish(whole, last)
        assert files_of(whole) == wanted[last], at
    assert [path.name for path in tmp_path.iterdir()] == ["whole.zarr"]


def test_ids_that_would_run_out_are_told_of_before_the_first_section(
    go: Go, sections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.inference.streaming.slabs.MOST_BLOCKS", 40)
    with pytest.raises(
        SourceError, match=r"found 13 sections of 96 x 96 pixels, expected at most \d+ with segmentation"
    ):
        go(sections, tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []
    assert go(sections, tmp_path / "out.zarr", segment=False).sections == 13


def test_a_torn_line_does_not_count(go: Go, sections: Path, whole: Path, files_of: Files) -> None:
    before = files_of(whole)
    manifest = whole / "stream" / "manifest-00000000.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert len(read_lines(manifest)) == 12
    go(sections, whole, resume=True)
    assert files_of(whole) == before


def test_settings_must_stay(go: Go, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.zarr"
    go(folder, whole)
    with pytest.raises(SourceError, match=r"was begun with precision \"32-true\", found \"bf16-mixed\""):
        go(folder, whole, options=Options(NM, None, "cpu", "bf16-mixed", backend="eager"), resume=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(SourceError, match="found no stream to continue"):
        go(folder, tmp_path / "other", resume=True)
    tifffile.imwrite(folder / "s_013.tif", np.zeros((96, 96), np.uint8))
    with pytest.raises(SourceError, match=r"was begun with sections 13, found 14"):
        go(folder, whole, resume=True)


def test_a_changed_section_is_not_paired(
    go: Go, folder: Path, tmp_path: Path, raw: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    with monkeypatch.context() as patch:
        stops_after(patch, 9, RuntimeError("broken"))
        with pytest.raises(RuntimeError):
            go(folder, out)
    tifffile.imwrite(folder / "s_005.tif", raw[19])
    with pytest.raises(SourceError, match=r"s_005.tif: is not what it was when section 5 was done"):
        go(folder, out, resume=True)


def test_manifest_and_metadata(go: Go, folder: Path, tmp_path: Path, raw: np.ndarray[Any, Any]) -> None:
    out = tmp_path / "out.zarr"
    seen: list[tuple[int, int | None]] = []
    go(folder, out, embedding="float16", on_progress=lambda done, total, rate: seen.append((done, total)))
    assert seen == [(3, 13), (6, 13), (9, 13), (12, 13), (13, 13)]
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["section"] for line in lines] == list(range(13))
    assert [Path(line["source"]).name for line in lines] == [f"s_{z:03d}.tif" for z in range(13)]
    assert len({line["checksum"] for line in lines}) == 13
    ome = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.5"
    images = {image["datasets"][0]["path"]: image for image in ome["multiscales"]}
    assert set(images) == {"affinity", "embedding", "supervoxels", "segmentation"}
    for name, image in images.items():
        volume = open_volume(f"{out}:{name}")
        scale, translation = image["datasets"][0]["coordinateTransformations"]
        assert tuple(scale["scale"][-3:]) == volume.resolution == NM
        assert tuple(translation["translation"][-3:]) == volume.offset
        assert len(image["axes"]) == len(volume.shape) == len(scale["scale"])
    embedding = open_volume(f"{out}:embedding").read().astype(np.float32)
    assert embedding.shape == (4, 13, 96, 96)
    np.testing.assert_allclose((embedding**2).sum(0), 1, atol=5e-3)


def test_zarr_python_reads_the_same(whole: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for name in ("affinity", "segmentation", "supervoxels"):
        array = zarr.open_array(whole / name, mode="r")
        np.testing.assert_array_equal(array[:], open_volume(f"{whole}:{name}").read())
        assert array.shards is not None


def test_paths_on_standard_input(
    go: Go, sections: Path, whole: Path, tmp_path: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    text = "".join(f"{path}\n" for path in sorted(sections.iterdir()))
    monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
    out = tmp_path / "listed.zarr"
    go("-", out)
    for name in ("affinity", "segmentation"):
        np.testing.assert_array_equal(open_volume(f"{out}:{name}").read(), open_volume(f"{whole}:{name}").read())


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_change_nothing(
    go: Go, sections: Path, whole: Path, tmp_path: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """However many sections run together, and wherever a stream was broken off."""
    import distill.inference.streaming.stream as recipe

    runner = recipe.SectionRunner
    monkeypatch.setattr(recipe, "SectionRunner", lambda *a, **k: _with_batch(runner(*a, **k), batch))
    out = tmp_path / "out.zarr"
    with monkeypatch.context() as patch:
        stops_after(patch, 10, RuntimeError("broken"))
        with pytest.raises(RuntimeError):
            go(sections, out, offsets=(*NEAREST, (-2, 0, 0), (-3, 1, 0)))
    go(sections, out, resume=True, offsets=(*NEAREST, (-2, 0, 0), (-3, 1, 0)))
    found = open_volume(f"{out}:affinity").read()
    once = tmp_path / "once.zarr"
    go(sections, once, offsets=(*NEAREST, (-2, 0, 0), (-3, 1, 0)))
    np.testing.assert_array_equal(found, open_volume(f"{once}:affinity").read())
    alone = open_volume(f"{whole}:affinity").read()
    np.testing.assert_allclose(found[:3].astype(int), alone.astype(int), atol=1)  # kernels of another batch round apart


def _with_batch(runner: Any, batch: int) -> Any:
    runner.batch = runner._mode._batch = batch  # more than the backend takes on this device
    return runner


def test_what_is_empty_is_counted_while_sections_are_read(
    go: Go, folder: Path, tmp_path: Path, raw: np.ndarray[Any, Any]
) -> None:
    """The same over resume and ranges; padding, a section of one value, and a place without a file."""
    padded = [np.maximum(section, 1) for section in raw[:13]]
    for section in padded:
        section[:24] = 0
    padded[5][:] = 7
    for z, section in enumerate(padded):
        tifffile.imwrite(folder / f"s_{z:03d}.tif", section)
    (folder / "s_009.tif").unlink()
    shares = [1.0 if z in (5, 9) else 0.25 for z in range(13)]
    out = tmp_path / "out.zarr"
    found = go(folder, out, on_bad=("skip",))
    assert found.about["empty"] == pytest.approx(np.mean(shares), abs=1e-6)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["empty"] for line in lines] == shares
    parts = tmp_path / "parts.zarr"
    for part in range(2):
        go(folder, parts, on_bad=("skip",), part=StreamPart(part, 2))
    assert finish(parts, None).about["empty"] == found.about["empty"]
    assert [line.empty for line in all_lines(parts)] == shares


def test_manifests_of_earlier_versions_do_not_say_what_was_empty(go: Go, whole: Path) -> None:
    for path in (whole / "stream").glob("manifest-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            assert line.pop("empty") >= 0
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "empty" not in finish(whole, None).about
