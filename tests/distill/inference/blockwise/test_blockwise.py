"""Many blocks are one volume: in memory or in blocks, in any order, broken off anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks_of_labels import Setting, piece, tree
from blocks_of_stores import Make, labels_of
from numpy.typing import NDArray

import distill.inference.blockwise.finish as lay_module
import distill.inference.blockwise.phases as phases
import distill.inference.blockwise.segment as recipe
import distill.inference.blockwise.worker as work_module
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Triple, largest_overlap
from distill.core.labels import compact
from distill.inference.assembly import Assembly, Piece, merge_contacts
from distill.inference.blockwise.executor import Here, OnDone, Task
from distill.inference.decode import decoder_overlap
from distill.inference.options import Options
from distill.io.volume import open_volume
from distill.io.writers.cremi import write_cremi
from distill.segmentation.agglomeration import RegionGraph, region_graph
from distill.segmentation.stitching import Stitcher


def in_memory(setting: Setting, threshold: float | None) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Supervoxels and final ids as the whole volume in memory has them."""
    plan, affinity = setting.plan(None), setting.known.affinity.astype(np.float32) / np.float32(255)
    tiles = sorted(tile for block in plan.blocks() for tile in block.tiles)
    assembly, supervoxels = Assembly(decoder_overlap(setting.shape, setting.config)), np.zeros(setting.shape, np.uint64)
    for first in sorted({box.start[0] for _, box in tiles}):
        slab = [(number, box) for number, box in tiles if box.start[0] == first]
        stop = slab[0][1].stop[0]
        pieces = [Piece(box, piece(setting.labels[box.slices], number)) for number, box in slab]
        ids = assembly.add(pieces, affinity[:, first:stop])
        skip = int(first > 0)
        supervoxels[first + skip : stop] = ids[skip:]
    return supervoxels, assembly.finish(threshold).apply(supervoxels)


@pytest.mark.parametrize("threshold", [None, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(5, 40, 40), (3, 41, 33), (1, 30, 20), (4, 9, 61)])
def test_blocks_are_the_volume_in_memory(make: Make, tmp_path: Path, shape: Triple, threshold: float | None) -> None:
    setting = make(shape)
    supervoxels, labels = in_memory(setting, threshold)
    whole = (3, max(16, shape[1]), max(18, shape[2]))
    options = Options(device="cpu", precision="32-true", merge=threshold)
    for number, block in enumerate(((3, 16, 18), (3, 30, 40), whole)):
        out = tmp_path / f"{number}.zarr"
        about = setting.run(out, options, block=block).about
        np.testing.assert_array_equal(open_volume(f"{out}:affinity").read(), setting.known.affinity)
        np.testing.assert_array_equal(open_volume(f"{out}:supervoxels").read(), supervoxels)
        np.testing.assert_array_equal(labels_of(out), compact(labels))
        assert labels_of(out).max() == about["objects"]


def test_pieces_of_other_methods_are_stitched_as_in_memory(make: Make, tmp_path: Path) -> None:
    setting = make((7, 46, 40))
    setting.known.method = "mws"
    out = tmp_path / "out.zarr"
    setting.run(out, Options(device="cpu", precision="32-true", merge=0.6))
    blocks = list(setting.plan(None).blocks())
    pieces = [(block.box, piece(setting.labels[block.box.slices], block.index)) for block in blocks]
    affinity = setting.known.affinity.astype(np.float32) / np.float32(255)
    stitcher, ids = Stitcher(largest_overlap([box for box, _ in pieces])), np.zeros(setting.shape, np.uint64)
    for block, (box, labels) in zip(blocks, pieces, strict=True):
        own = block.owned.relative_to(box.start).slices
        ids[block.owned.slices] = stitcher.add(block.index, box, labels)[own]
    graph = region_graph(ids, affinity)
    across = graph.u >> np.uint64(32) != graph.v >> np.uint64(32)
    contacts = RegionGraph(graph.u[across], graph.v[across], graph.total[across], graph.count[across])
    wanted = merge_contacts(stitcher.finish(), [contacts], 0.6).apply(ids)
    np.testing.assert_array_equal(labels_of(out), compact(wanted))
    assert labels_of(out).max() > len(blocks)


def shuffled(seed: int) -> Callable[[Here, Iterable[Task], OnDone], Any]:
    run = Here.run

    def anyhow(self: Here, tasks: Iterable[Task], on_done: OnDone) -> Any:
        mixed = list(tasks)
        random.Random(seed).shuffle(mixed)
        return run(self, mixed, on_done)

    return anyhow


def test_any_order_gives_the_same_bytes(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.run(tmp_path / "a" / "out.zarr")
    wanted = setting.known.solved[:]
    monkeypatch.setattr(Here, "run", shuffled(3))
    (tmp_path / "b").mkdir()
    setting.known.solved.clear()
    setting.run(tmp_path / "b" / "out.zarr")
    assert sorted(setting.known.solved) == wanted == list(range(8))
    assert setting.known.solved != wanted
    a, b = tree(tmp_path / "a" / "out.zarr"), tree(tmp_path / "b" / "out.zarr")
    assert a == b
    assert sum(name.startswith("segmentation/c/") for name in a) >= 1
    assert not [name for name in a if name.startswith(("blocks/affinity", "blocks/supervoxels", "blocks/finishing"))]


STEPS: list[tuple[Any, str]] = [
    *((work_module, name) for name in ("write_table", "write_evidence")),
    *((phases, name) for name in ("merge_blocks", "write_mapping", "write_group_attributes")),
    (recipe, "forget_replaced"),
    *((lay_module, name) for name in ("begin", "put_in_place", "task_report")),
]


@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("after", [False, True])
def test_broken_off_anywhere_it_goes_on_to_the_same_bytes(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, step: str, after: bool
) -> None:
    setting.run(tmp_path / "whole" / "out.zarr")
    wanted, count = tree(tmp_path / "whole" / "out.zarr"), 0
    done = getattr(module, step)
    out = tmp_path / "killed" / "out.zarr"
    out.parent.mkdir()

    def killed(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2 or step not in ("write_table", "write_evidence", "put_in_place"):
            if after:
                done(*given, **named)
            raise KeyboardInterrupt
        return done(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            setting.run(out)
    before = len(list((out / "blocks" / "tables").glob("*.npz")))
    (out / "blocks" / "tables" / "00000003.npz.12ab.writing").write_bytes(b"half")  # of a killed process
    setting.known.solved.clear()
    setting.run(out, resume=True)
    assert len(setting.known.solved) == 8 - before
    assert tree(out) == wanted
    assert [path.name for path in out.parent.iterdir()] == ["out.zarr"]


def test_tables_of_an_earlier_version_are_refused(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = work_module.write_table
    monkeypatch.setattr(work_module, "write_table", lambda path, table: write(path, replace(table, faces={})))
    with pytest.raises(DistillError, match=r"tables of blocks 0 and \d+ have no 'z_high_.*--overwrite"):
        setting.run(tmp_path / "out.zarr", retries=0)


def test_nothing_done_leaves_nothing_and_what_was_there_comes_back(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.zarr"
    setting.run(out)
    before = tree(out)
    setting.known.fails = dict.fromkeys(range(8), 99)
    with pytest.raises(DistillError, match="and 7 more; of 8 blocks the others are kept"):
        setting.run(out, Options(device="cpu", precision="32-true", merge=0.5, overwrite=True), retries=0)
    assert tree(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["out.zarr"]


def test_a_block_that_fails_is_tried_again_and_named(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    setting.known.fails = {5: 2}
    setting.run(tmp_path / "lucky.zarr")
    assert setting.known.solved.count(5) == 3
    setting.known.fails = {5: 3}
    box = setting.plan(None).block(5).box
    with pytest.raises(
        DistillError, match=r"block 5 \(voxels .*\): RuntimeError: no such luck; of 8 blocks the"
    ) as error:
        setting.run(out)
    assert f"{box.start} to {box.stop}" in str(error.value)
    assert len(list((out / "blocks" / "tables").iterdir())) == 7
    setting.known.solved.clear()
    setting.run(out, resume=True)
    assert setting.known.solved == [5]
    wanted = tree(tmp_path / "lucky.zarr")
    assert tree(out) == wanted


def test_voxels_that_are_gone_are_told_and_done_again(setting: Setting, tmp_path: Path) -> None:
    out, reported = tmp_path / "out.zarr", []
    setting.run(tmp_path / "whole.zarr")
    setting.known.fails = {7: 9}
    with pytest.raises(DistillError):
        setting.run(out)
    (out / "blocks" / "supervoxels" / "c" / "1" / "0" / "1").unlink()
    setting.known.fails, setting.known.solved = {}, []
    setting.run(out, resume=True, note=reported.append)
    lost = setting.plan(None).at(1, 0, 1)
    assert reported[-1] == f"{out}: {lost} has a table, but its voxels are missing (supervoxels); it is done again"
    assert setting.known.solved == [lost.index, 7]
    assert tree(out) == tree(tmp_path / "whole.zarr")


def test_another_store_source_or_plan_is_refused(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    setting.known.fails = {7: 99}
    with pytest.raises(DistillError, match="block 7"):
        setting.run(out)
    with pytest.raises(SourceError, match=r"out\.zarr: exists already; expected a new path, or --overwrite"):
        setting.run(out)
    with pytest.raises(SourceError, match=r"was begun with columns \[\[0, 18\], \[14, 40\]\], found \[\[0, 18"):
        setting.run(out, resume=True, block=(3, 30, 18))
    setting.weights.write_text("b")
    with pytest.raises(SourceError, match=r'was begun with model_sha256 "a", found "b"; expected the same, or --overw'):
        setting.run(out, resume=True)
    setting.weights.write_text("a")

    write_cremi(setting.source, raw=setting.labels[::-1].copy(), resolution=(30, 6, 6))
    with pytest.raises(SourceError, match=r"was begun with first_section_sha256"):
        setting.run(out, resume=True)
    write_cremi(setting.source, raw=setting.labels, resolution=(30, 6, 7))
    with pytest.raises(SourceError, match=r"was begun with resolution \[30.0, 6.0, 6.0\], found \[30.0, 6.0, 7.0\]"):
        setting.run(out, resume=True)
    (tmp_path / "other.zarr").mkdir()
    with pytest.raises(SourceError, match="found no blocks to continue, expected a store of distill segment"):
        setting.run(tmp_path / "other.zarr", resume=True)


def test_tables_of_other_blocks_are_refused(setting: Setting, tmp_path: Path) -> None:
    out, tables = tmp_path / "out.zarr", tmp_path / "out.zarr" / "blocks" / "tables"
    setting.known.fails = {7: 99}
    with pytest.raises(DistillError, match="block 7"):
        setting.run(out)
    (tables / "00000099.npz").write_bytes((tables / "00000003.npz").read_bytes())
    with pytest.raises(SourceError, match="found a table of block 99, expected blocks 0 to 7"):
        setting.run(out, resume=True)
    (tables / "00000099.npz").rename(tables / "00000007.npz")
    with pytest.raises(SourceError, match=r"00000007\.npz: found a block of voxels .* it would overlap others"):
        setting.run(out, resume=True)
    (tables / "00000007.npz").write_bytes(b"half")
    with pytest.raises(SourceError, match=r"00000007\.npz: cannot be read"):
        setting.run(out, resume=True)
