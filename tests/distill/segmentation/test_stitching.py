"""Blocks cut from a whole come together again, whatever their ids and their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Triple, largest_overlap, owned_boxes, tiles
from distill.core.labels import compact
from distill.evaluation.metrics import score
from distill.segmentation.shared_voxels import Shares, unite
from distill.segmentation.stitching import Stitcher, assemble, stitch

Labels = NDArray[np.integer[Any]]
Blocks = list[tuple[Box, Labels]]
ANY = 1e-9  # any shared voxel is enough


def blobs(rng: np.random.Generator, shape: Triple) -> NDArray[np.uint64]:
    """Connected objects of random shape with background between them."""
    return label(rng.integers(0, 4, shape), connectivity=1).astype(np.uint64)


def cut(whole: Labels, boxes: list[Box], rng: np.random.Generator, origin: Triple = (0, 0, 0)) -> Blocks:
    """Blocks whose ids start at 1: one per connected piece, in random order."""
    blocks: Blocks = []
    for box in boxes:
        pieces = label(whole[box.relative_to(origin).slices], connectivity=1)
        names = np.concatenate([[0], rng.permutation(pieces.max()) + 1])
        blocks.append((box, names[pieces].astype(rng.choice([np.uint8, np.int32, np.uint64]))))
    return blocks


def perfect_affinity(labels: Labels) -> NDArray[np.float32]:
    affinity = np.zeros((3, *labels.shape), np.float32)
    affinity[0, 1:] = (labels[1:] == labels[:-1]) & (labels[1:] > 0)
    affinity[1, :, 1:] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    affinity[2, :, :, 1:] = (labels[:, :, 1:] == labels[:, :, :-1]) & (labels[:, :, 1:] > 0)
    return affinity


def same_up_to_names(a: Labels, b: Labels) -> bool:
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len({p for p, _ in pairs}) == len({q for _, q in pairs}) and all(
        (p == 0) == (q == 0) for p, q in pairs
    )


layouts = st.tuples(
    st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(2, 5)] * 3), st.tuples(*[st.integers(1, 3)] * 3)
)


def grid(shape: Triple, size: Triple, overlap: Triple) -> list[Box]:
    z, y, x = (max(1, n - o) for n, o in zip(size, overlap, strict=True))
    return list(tiles(Box.of_shape(shape), size, (z, y, x)))


@settings(max_examples=80, deadline=None)
@given(layouts, st.integers(0, 2**32 - 1), st.booleans())
def test_what_was_cut_comes_together(layout: tuple[Triple, Triple, Triple], seed: int, with_affinity: bool) -> None:
    rng = np.random.default_rng(seed)
    whole = blobs(rng, layout[0])
    blocks = cut(whole, grid(*layout), rng)
    affinity = perfect_affinity(whole) if with_affinity else None
    found = stitch(blocks, Box.of_shape(layout[0]), affinity=affinity, overlap_threshold=ANY)
    assert same_up_to_names(found, whole)
    assert set(np.unique(found)) - {0} == set(range(1, int(found.max()) + 1))
    assert found.dtype == np.uint64


@settings(max_examples=40, deadline=None)
@given(layouts, st.integers(0, 2**32 - 1), st.sampled_from([None, 0.3, 0.6]), st.sampled_from([0.0, 0.4]))
def test_order_of_blocks_does_not_matter(
    layout: tuple[Triple, Triple, Triple], seed: int, threshold: float | None, overlap: float
) -> None:
    rng = np.random.default_rng(seed)
    boxes = grid(*layout)
    blocks = [(box, rng.integers(0, 6, box.shape)) for box in boxes]
    affinity = None if threshold is None else rng.random((3, *layout[0]), np.float32)
    results = []
    for _ in range(3):
        stitched = stitch(
            [blocks[k] for k in rng.permutation(len(blocks))],
            Box.of_shape(layout[0]),
            affinity=affinity,
            overlap_threshold=overlap,
            affinity_threshold=threshold or 0.7,
        )
        results.append(stitched.tobytes())
    assert len(set(results)) == 1


@settings(max_examples=40, deadline=None)
@given(layouts, st.integers(0, 2**32 - 1), st.booleans())
def test_order_of_adding_does_not_matter(layout: tuple[Triple, Triple, Triple], seed: int, with_affinity: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes = grid(*layout)
    labels = [rng.integers(0, 5, box.shape) for box in boxes]
    edges = [rng.random((3, *box.shape), np.float32) if with_affinity else None for box in boxes]
    results = []
    for order in (range(len(boxes)), rng.permutation(len(boxes)).tolist(), range(len(boxes))[::-1]):
        stitcher = Stitcher(largest_overlap(boxes), overlap_threshold=0.3, affinity_threshold=0.5)
        for index in order:
            stitcher.add(index, boxes[index], labels[index], edges[index])
        mapping = stitcher.finish()
        results.append((mapping.old.tobytes(), mapping.new.tobytes()))
    assert len(set(results)) == 1


@settings(max_examples=40, deadline=None)
@given(layouts, st.integers(0, 2**32 - 1), st.booleans())
def test_streaming_equals_stitching_in_memory(
    layout: tuple[Triple, Triple, Triple], seed: int, with_affinity: bool
) -> None:
    rng = np.random.default_rng(seed)
    boxes = grid(*layout)
    blocks = [(box, rng.integers(0, 5, box.shape)) for box in boxes]
    affinity = rng.random((3, *layout[0]), np.float32) if with_affinity else None
    stitcher = Stitcher(largest_overlap(boxes), overlap_threshold=0.4, affinity_threshold=0.5)
    volume = np.zeros(layout[0], np.uint64)
    for index, ((box, labels), owned) in enumerate(zip(blocks, owned_boxes(boxes), strict=True)):
        stitcher.retire(box.start[0])
        edges = None if affinity is None else affinity[(slice(None), *box.slices)].copy()
        ids = stitcher.add(index, box, labels, edges)
        volume[owned.slices] = ids[owned.relative_to(box.start).slices]
    whole = stitch(blocks, Box.of_shape(layout[0]), affinity=affinity, overlap_threshold=0.4, affinity_threshold=0.5)
    np.testing.assert_array_equal(stitcher.finish().apply(volume), whole)


@settings(max_examples=60, deadline=None)
@given(layouts, st.integers(0, 2**32 - 1))
def test_every_voxel_is_owned_once_far_from_inner_borders(layout: tuple[Triple, Triple, Triple], seed: int) -> None:
    boxes, shape = grid(*layout), layout[0]
    written = np.zeros(shape, int)
    order = np.random.default_rng(seed).permutation(len(boxes))
    for index, owned in zip(order, owned_boxes([boxes[k] for k in order]), strict=True):
        box = boxes[index]
        assert box.contains(owned)
        written[owned.slices] += 1
        for axis in range(3):
            spans = sorted({(one.start[axis], one.stop[axis]) for one in boxes})
            at = spans.index((box.start[axis], box.stop[axis]))
            before = spans[at - 1][1] - box.start[axis] if at else 0
            after = box.stop[axis] - spans[at + 1][0] if at + 1 < len(spans) else 0
            assert owned.start[axis] - box.start[axis] == (before + 1) // 2
            assert box.stop[axis] - owned.stop[axis] == after // 2
    assert (written == 1).all()


def test_one_block_is_left_as_it_is() -> None:
    labels = blobs(np.random.default_rng(0), (3, 6, 5))
    np.testing.assert_array_equal(stitch([(Box.of_shape((3, 6, 5)), labels)], Box.of_shape((3, 6, 5))), labels)
    far = np.where(labels > 0, labels * 1000, 0)
    np.testing.assert_array_equal(stitch([(Box.of_shape((3, 6, 5)), far)], Box.of_shape((3, 6, 5))), labels)


def test_a_volume_away_from_the_origin() -> None:
    rng = np.random.default_rng(1)
    whole = blobs(rng, (4, 7, 6))
    region = Box((10, 20, 30), (14, 27, 36))
    blocks = cut(whole, list(tiles(region, (2, 4, 4), (1, 3, 3))), rng, region.start)
    assert same_up_to_names(stitch(blocks, region, affinity=perfect_affinity(whole), overlap_threshold=ANY), whole)


def test_blocks_of_background_give_background() -> None:
    boxes = grid((3, 5, 5), (2, 3, 3), (1, 1, 1))
    found = stitch([(box, np.zeros(box.shape, np.uint8)) for box in boxes], Box.of_shape((3, 5, 5)))
    assert not found.any()
    assert not stitch([], Box.of_shape((1, 2, 2))).any()


def row(values: list[int]) -> Labels:
    return np.array(values).reshape(1, 1, -1)


def two_blocks(shared_first: list[int], shared_second: list[int]) -> tuple[Blocks, Box]:
    """Two blocks of 2 x 1 x N that share section 1; section 0 and 2 continue the ids of section 1."""
    n = len(shared_first)
    first, second = np.concatenate([row(shared_first)] * 2), np.concatenate([row(shared_second)] * 2)
    return [(Box((0, 0, 0), (2, 1, n)), first), (Box((1, 0, 0), (3, 1, n)), second)], Box((0, 0, 0), (3, 1, n))


def test_the_larger_of_two_decides_how_much_overlap_is_enough() -> None:
    blocks, whole = two_blocks([1, 1, 1, 1, 2, 2, 2, 2], [5, 0, 0, 0, 0, 5, 5, 6])
    assert stitch(blocks, whole)[0].tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]]
    assert stitch(blocks, whole)[2].tolist() == [[2, 0, 0, 0, 0, 2, 2, 3]]
    loose = stitch(blocks, whole, overlap_threshold=0.25)
    assert loose[2].tolist() == [[1, 0, 0, 0, 0, 1, 1, 1]]
    strict = stitch(blocks, whole, overlap_threshold=0.7)
    assert strict[2].tolist() == [[3, 0, 0, 0, 0, 3, 3, 4]]


def test_a_sliver_does_not_chain_two_neurons() -> None:
    """A one-voxel sliver of the first block lies in both neurons of the second; each neuron keeps its own partner."""
    blocks, whole = two_blocks([1, 1, 1, 9, 2, 2, 2], [5, 5, 5, 5, 6, 6, 6])
    found = stitch(blocks, whole)
    assert found[2].tolist() == [[1, 1, 1, 1, 2, 2, 2]]
    assert found[0].tolist() == [[1, 1, 1, 3, 2, 2, 2]]


def contact_by_hand() -> tuple[Blocks, Box, NDArray[np.float32]]:
    """One object in two blocks: edges 0-1 lie in the first block alone, edges 1-2 in the second."""
    blocks, whole = two_blocks([1, 1, 1, 1], [3, 3, 3, 3])
    return blocks, whole, np.full((3, *whole.shape), 0.1, np.float32)


@pytest.mark.parametrize(
    ("inner", "outer", "merges"), [(0.8, 0.8, True), (0.8, 0.5, False), (0.5, 0.8, False), (1, 0.5, True)]
)
def test_the_mean_affinity_of_both_sides_must_exceed_the_threshold(inner: float, outer: float, merges: bool) -> None:
    blocks, whole, affinity = contact_by_hand()
    affinity[0, 1], affinity[0, 2] = inner, outer
    assert (stitch(blocks, whole, affinity=affinity).max() == 1) == merges


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_contacts_are_the_same_on_every_axis(axis: int) -> None:
    blocks, whole, affinity = contact_by_hand()
    turned = [(0, 1, 2), (1, 0, 2), (2, 1, 0)][axis]
    affinity[0, 1:] = 0.75

    def turn(box: Box) -> Box:
        start, stop = ([side[k] for k in turned] for side in (box.start, box.stop))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    pieces = [(turn(box), labels.transpose(turned)) for box, labels in blocks]
    edges = affinity[list(turned)].transpose(0, *(k + 1 for k in turned))
    assert stitch(pieces, turn(whole), affinity=edges).max() == 1
    assert stitch(pieces, turn(whole), affinity=edges, affinity_threshold=0.75).max() == 2


def test_affinity_alone_joins_what_shares_no_voxel() -> None:
    blocks, whole = two_blocks([1, 1, 0, 0], [0, 0, 0, 0])
    blocks[1][1][1, 0, :2] = 8
    affinity = np.full((3, *whole.shape), 0.9, np.float32)
    assert stitch(blocks, whole, affinity=affinity).max() == 2
    joined = stitch(blocks, whole, affinity=affinity, overlap_threshold=0)
    assert joined[:, 0].tolist() == [[1, 1, 0, 0]] * 3


def test_without_contact_the_overlap_decides() -> None:
    labels = np.array([0, 1]).reshape(2, 1, 1), np.array([4, 0]).reshape(2, 1, 1)
    blocks = [(Box((0, 0, 0), (2, 1, 1)), labels[0]), (Box((1, 0, 0), (3, 1, 1)), labels[1])]
    whole = Box((0, 0, 0), (3, 1, 1))
    affinity = np.zeros((3, 3, 1, 1), np.float32)
    pair = Stitcher((1, 0, 0)), Stitcher((1, 0, 0), overlap_threshold=0)
    for stitcher in pair:
        for index, (box, ids) in enumerate(blocks):
            stitcher.add(index, box, ids, affinity[(slice(None), *box.slices)])
    assert [len(set(stitcher.finish().new.tolist())) for stitcher in pair] == [1, 2]
    assert stitch(blocks, whole, affinity=affinity).ravel().tolist() == [0, 1, 0]


def test_a_weak_contact_of_merged_segments_counts() -> None:
    """Two strong merges leave one contact of mean 0.5 between the results, though a part of it alone is strong."""
    blocks, whole = two_blocks([1, 1, 1, 2, 2, 2], [3, 3, 4, 4, 3, 3])
    affinity = np.full((3, *whole.shape), 0.0, np.float32)
    affinity[0, 1:] = [0.95, 0.95, 0.75, 0.95, 0.1, 0.1]
    found = stitch(blocks, whole, affinity=affinity, overlap_threshold=ANY)
    assert found[0].tolist() == [[1, 1, 1, 2, 2, 2]]
    assert found[2].tolist() == [[1, 1, 2, 2, 1, 1]]


def test_blocks_meet_across_faces_only() -> None:
    labels = np.ones((1, 2, 2), np.uint8)
    others = [(Box((0, 0, 1), (1, 2, 3)), 0 * labels), (Box((0, 1, 0), (1, 3, 2)), 0 * labels)]
    corner = [(Box((0, 0, 0), (1, 2, 2)), labels), (Box((0, 1, 1), (1, 3, 3)), labels), *others]
    assert stitch(corner, Box((0, 0, 0), (1, 3, 3))).max() == 2
    apart = [(Box((0, 0, 0), (1, 2, 2)), labels), (Box((0, 0, 2), (1, 2, 4)), labels)]
    assert stitch(apart, Box((0, 0, 0), (1, 2, 4))).max() == 2


def test_only_faces_are_kept_and_retired() -> None:
    stitcher = Stitcher((1, 1, 1))
    labels = np.ones((20, 30, 40), np.uint32)
    stitcher.add(0, Box.of_shape(labels.shape), labels)
    ((_, faces),) = stitcher._faces.values()
    assert sorted(face.labels.shape for face in faces) == [(2, 30, 40)] * 2 + [(20, 2, 40)] * 2 + [(20, 30, 2)] * 2
    assert not any(np.shares_memory(face.labels, labels) for face in faces)
    stitcher.retire(19)
    assert len(stitcher._faces) == 1
    stitcher.retire(20)
    assert not stitcher._faces
    with pytest.raises(DistillError, match="sections before 20 are retired"):
        stitcher.add(1, Box((19, 0, 0), (39, 30, 40)), labels)


def test_global_ids_come_from_index_and_local_id() -> None:
    stitcher = Stitcher((1, 0, 0))
    ids = stitcher.add(3, Box((0, 0, 0), (1, 1, 3)), row([0, 1, 7]))
    assert ids.tolist() == [[[0, 3 * 2**32 + 1, 3 * 2**32 + 7]]]
    mapping = stitcher.finish()
    assert mapping.new.tolist() == [1, 2]
    assert assemble([(Box((0, 0, 0), (1, 1, 3)), ids)], Box((0, 0, 0), (1, 1, 3)), mapping).tolist() == [[[0, 1, 2]]]


def test_refuses() -> None:
    box, labels = Box((0, 0, 0), (1, 1, 3)), row([0, 1, 7])
    stitcher = Stitcher((1, 1, 1))
    stitcher.add(0, box, labels)
    for index, where, ids, affinity, message in (
        (0, box, labels, None, "index: found 0"),
        (-1, box, labels, None, "index: found -1"),
        (1, box, row([0, 1]), None, r"labels: found int64 \(1, 1, 2\), expected integers \(1, 1, 3\)"),
        (1, box, row([0, 1, 2**32]), None, "found ids 0 to 4294967296"),
        (1, box, row([0, 1, -2]), None, "found ids -2 to 1"),
        (1, box, labels, np.zeros((3, 1, 1, 2), np.float32), "affinity: found float32"),
        (1, box, labels, np.zeros((3, 1, 1, 3), np.uint8), "affinity: found uint8"),
        (1, box, labels, np.zeros((3, 1, 1, 3), np.float32), "unlike before"),
    ):
        with pytest.raises(DistillError, match=message):
            stitcher.add(index, where, ids, affinity)
    with pytest.raises(DistillError, match="overlap: found"):
        Stitcher((1, -1, 1))
    with pytest.raises(DistillError, match=r"affinity_threshold: found 1\.5"):
        Stitcher((1, 1, 1), affinity_threshold=1.5)
    with pytest.raises(DistillError, match="expected it inside"):
        stitch([(box, labels)], Box((0, 0, 0), (1, 1, 2)))
    with pytest.raises(ShapeError, match="affinity: found shape"):
        stitch([(box, labels)], box, affinity=np.zeros((3, 1, 1, 4), np.float32))
    with pytest.raises(DistillError, match="full grid"):
        owned_boxes([Box((0, 0, 0), (1, 1, 1)), Box((0, 1, 1), (1, 2, 2))])


def test_refuses_more_overlap_than_announced() -> None:
    labels = np.ones((9, 2, 2), np.uint8)
    stitcher = Stitcher((1, 0, 0))
    stitcher.add(0, Box((0, 0, 0), (9, 2, 2)), labels)
    with pytest.raises(DistillError, match="share more than the overlap"):
        stitcher.add(1, Box((6, 0, 0), (15, 2, 2)), labels)


def test_real_labels_come_together(real_labels_like: NDArray[np.uint64]) -> None:
    rng = np.random.default_rng(0)
    boxes = grid((9, 60, 60), (5, 33, 33), (1, 1, 1))
    found = stitch(
        cut(real_labels_like, boxes, rng), Box.of_shape((9, 60, 60)), affinity=perfect_affinity(real_labels_like)
    )
    result = score(found, real_labels_like)
    assert result.voi_merge == 0
    assert result.voi_split < 0.05
    np.testing.assert_array_equal(compact(found), found)


@pytest.fixture
def real_labels_like() -> NDArray[np.uint64]:
    """Cells that drift from section to section, without background: what neurites look like."""
    rng = np.random.default_rng(3)
    points, drift = rng.random((25, 2)) * 60, rng.normal(0, 0.5, (25, 2))
    z, y, x = np.indices((9, 60, 60))
    distance = [(y - p - a * z) ** 2 + (x - q - b * z) ** 2 for (p, q), (a, b) in zip(points, drift, strict=True)]
    return label(np.argmin(distance, axis=0) + 1, connectivity=1).astype(np.uint64)


@settings(max_examples=60)
@given(
    n=st.integers(1, 20),
    joins=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19), st.sampled_from([0.2, 0.5, 1.0])), max_size=30),
)
def test_unite_equals_flooding(n: int, joins: list[tuple[int, int, float]]) -> None:
    ids = np.arange(n, dtype=np.uint64) * 7 + 3
    pairs = [(a % n, b % n, share) for a, b, share in joins]
    root = list(range(n))
    for _ in range(n):
        for a, b, share in pairs:
            if share >= 0.5:
                root[a] = root[b] = min(root[a], root[b])
    a, b, share = (np.array([pair[k] for pair in pairs]) for k in range(3))
    found = unite(ids, Shares(ids[a.astype(int)], ids[b.astype(int)], share.astype(float)))
    np.testing.assert_array_equal(found.old, ids)
    np.testing.assert_array_equal(found.new, np.unique(root, return_inverse=True)[1] + 1)
