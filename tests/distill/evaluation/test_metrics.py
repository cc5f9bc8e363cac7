"""Scores against scikit-image, against oracles that count voxel by voxel, and at the corners of their definitions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error, variation_of_information

from distill.core.errors import DistillError, ShapeError
from distill.evaluation.contingency import Contingency, border_mask, border_reach
from distill.evaluation.metrics import object_bits, score, worst_objects

Labels = NDArray[np.integer[Any]]


def random_pair(seed: int, shape: tuple[int, ...] = (4, 9, 11)) -> tuple[Labels, Labels]:
    """A ground truth with background and a segmentation that agrees in part."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 5, (*shape[:-1], 1)), shape[-1], axis=-1)
    segmentation = np.where(rng.random(shape) < 0.6, labels + 3, rng.integers(0, 8, shape))
    return segmentation, labels


def entropy(counts: Counter[Any]) -> float:
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def pairs(counts: Counter[Any]) -> int:
    return sum(n * (n - 1) for n in counts.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_scikit_image(seed: int) -> None:
    segmentation, labels = random_pair(seed)
    found = score(segmentation, labels)
    split, merge = variation_of_information(labels, segmentation, ignore_labels=(0,))
    error, joined_by_truth, joined_by_segmentation = adapted_rand_error(labels, segmentation, ignore_labels=(0,))
    expected = [split, merge, error, joined_by_segmentation, joined_by_truth]
    numbers = [found.voi_split, found.voi_merge, found.arand, found.arand_precision, found.arand_recall]
    np.testing.assert_allclose(numbers, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_equals_counting_voxels(seed: int) -> None:
    segmentation, labels = random_pair(seed)
    kept = [(s, t) for s, t in zip(segmentation.ravel().tolist(), labels.ravel().tolist(), strict=True) if t]
    joint, pred, true = Counter(kept), Counter(s for s, _ in kept), Counter(t for _, t in kept)
    found = score(segmentation, labels)
    assert found.voi_split == pytest.approx(entropy(joint) - entropy(true), abs=1e-9)
    assert found.voi_merge == pytest.approx(entropy(joint) - entropy(pred), abs=1e-9)
    assert found.voi_sum == pytest.approx(found.voi_split + found.voi_merge)
    assert found.arand_precision == pytest.approx(pairs(joint) / pairs(pred), abs=1e-9)
    assert found.arand_recall == pytest.approx(pairs(joint) / pairs(true), abs=1e-9)
    assert found.arand == pytest.approx(1 - 2 * pairs(joint) / (pairs(pred) + pairs(true)), abs=1e-9)
    assert (found.n_true, found.n_pred, found.voxels) == (len(true), len(set(pred) - {0}), len(kept))


def test_halving_an_object_is_one_bit_of_split() -> None:
    labels, halves = np.ones((2, 4, 4), np.uint64), np.repeat([5, 6], 16).reshape(2, 4, 4)
    found = score(halves, labels)
    assert (found.voi_split, found.voi_merge) == (1.0, 0.0)
    assert found.arand_precision == 1.0
    assert found.arand_recall == pytest.approx(15 / 31)
    other_way = score(labels, halves)
    assert (other_way.voi_split, other_way.voi_merge) == (0.0, 1.0)
    assert other_way.arand_recall == 1.0


def test_a_perfect_segmentation_has_no_error_under_any_preset_and_numbering() -> None:
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[:, :18], labels[:, 22:] = 1, 200
    renamed = np.array([2**63 + 5, 2**64 - 1, 7], np.uint64)[labels // 100]
    renamed[:, 20] = 12
    for preset in ("skimage", "cremi", "agq", "cad"):
        found = score(renamed, labels, preset, resolution=(40, 4, 4))
        assert (found.preset, found.voi_sum, found.n_true, found.n_pred) == (preset, 0.0, 2, 2)
        assert found.arand == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_ids_and_memory_order_do_not_matter(dtype: type[np.integer[Any]]) -> None:
    segmentation, labels = random_pair(3)
    renamed = (segmentation.astype(np.uint64) + np.uint64(2**63)) * np.uint64(7)
    turned = np.asfortranarray(labels.astype(dtype))
    assert score(renamed.transpose(2, 1, 0), turned.transpose(2, 1, 0)) == score(segmentation + 1, labels)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), max_size=4, unique=True), st.sampled_from(["cad", "cremi"])
)
def test_chunks_add_up_to_the_whole(seed: int, cuts: list[int], preset: str) -> None:
    segmentation, labels = random_pair(seed, (6, 13, 12))
    labels[:, :6, :] = 1
    table = Contingency(preset, resolution=(40, 9, 9))
    for a, b in itertools.pairwise([0, *sorted(cuts), 6]):
        table.add(segmentation[a:b], labels[a:b])
    assert table.scores() == score(segmentation, labels, preset, resolution=(40, 9, 9))


def test_a_large_volume_is_taken_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation, labels = random_pair(8, (7, 10, 10))
    whole = score(segmentation, labels)
    monkeypatch.setattr("distill.evaluation.contingency._CHUNK_VOXELS", 250)
    assert score(segmentation, labels) == whole


def test_worst_objects_add_up_to_the_scores() -> None:
    segmentation, labels = random_pair(11)
    table = Contingency()
    table.add(segmentation, labels)
    worst, found = worst_objects(table, 100), table.scores()
    assert sum(o.bits for o in worst.split) == pytest.approx(found.voi_split)
    assert sum(o.bits for o in worst.merged) == pytest.approx(found.voi_merge)
    bits = [o.bits for o in worst_objects(table, 2).split]
    assert bits == sorted(bits, reverse=True)
    assert len(bits) == 2


def test_worst_objects_names_the_split_one() -> None:
    labels = np.repeat([1, 2, 3], 8).reshape(3, 2, 4)
    segmentation = labels.copy()
    segmentation[1, 0] = 9
    table = Contingency()
    table.add(segmentation, labels)
    worst = worst_objects(table, 5)
    assert [(o.id, o.voxels, o.pieces) for o in worst.split] == [(2, 8, 2)]
    assert worst.split[0].bits == pytest.approx(8 / 24)
    assert worst.merged == ()


def mask_oracle(labels: Labels, resolution: tuple[float, float, float], distance_nm: float) -> NDArray[np.bool_]:
    masked = np.zeros(labels.shape, bool)
    _, height, width = labels.shape
    for z, section in enumerate(labels):
        border = set()
        for y, x in itertools.product(range(height), range(width)):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            if any(0 <= v < height and 0 <= u < width and section[v, u] != section[y, x] for v, u in around):
                border.add((y, x))
        for y, x in itertools.product(range(height), range(width)):
            near = [math.hypot((y - v) * resolution[1], (x - u) * resolution[2]) for v, u in border]
            masked[z, y, x] = min(near, default=math.inf) <= distance_nm
    return masked


@pytest.mark.parametrize("resolution", [(40.0, 4.0, 4.0), (30.0, 5.0, 5.0), (30.0, 6.0, 10.0)])
def test_border_mask_equals_measuring_every_distance(resolution: tuple[float, float, float]) -> None:
    labels = np.zeros((3, 20, 16), np.uint16)
    labels[0, :9], labels[0, 9:] = 4, 700
    labels[1, 4:7, 3:6] = 1
    expected = mask_oracle(labels, resolution, 25.0)
    np.testing.assert_array_equal(border_mask(labels, resolution), expected)
    assert expected[0].any()
    assert not expected[0].all()
    assert not expected[2].any()


@pytest.mark.parametrize("seed", range(3))
def test_cremi_equals_counting_voxels(seed: int) -> None:
    segmentation, labels = random_pair(seed, (3, 24, 30))
    labels = np.where(np.arange(30) < 14, 1, 2) * (labels >= 0)
    mask = mask_oracle(labels, (40.0, 4.0, 4.0), 25.0)
    kept = [(s, t) for s, t in zip(segmentation[~mask].tolist(), labels[~mask].tolist(), strict=True)]
    joint, pred, true = Counter(kept), Counter(s for s, _ in kept), Counter(t for _, t in kept)
    lone = pred[0] / labels.size
    both = sum(n * n for (s, _), n in joint.items() if s) + lone
    precision = both / (sum(n * n for s, n in pred.items() if s) + lone)
    recall = both / sum(n * n for n in true.values())
    found = score(segmentation, labels, "cremi", resolution=(40, 4, 4))
    error = 1 - 2 * precision * recall / (precision + recall)
    assert found.arand == pytest.approx(error, abs=1e-9)
    assert found.voi_split == pytest.approx(entropy(joint) - entropy(true), abs=1e-9)
    assert found.voi_merge == pytest.approx(entropy(joint) - entropy(pred), abs=1e-9)
    assert found.cremi_score == pytest.approx(math.sqrt(found.voi_sum * error))
    assert found.to_dict()["cremi_score"] == found.cremi_score


def test_results_carry_their_preset_and_numbers() -> None:
    segmentation, labels = random_pair(1)
    found = score(segmentation, labels, "agq")
    numbers = found.to_dict()
    assert numbers["preset"] == "agq"
    assert numbers["voi_sum"] == found.voi_split + found.voi_merge
    assert found.cremi_score is None


@pytest.mark.parametrize(
    ("segmentation", "labels", "error", "message"),
    [
        (np.ones((2, 3), int), np.ones((3, 2), int), ShapeError, r"found shape \(2, 3\), expected .* \(3, 2\)"),
        (np.ones((2, 3)), np.ones((2, 3), int), ShapeError, "segmentation: found float64"),
        (np.ones((2, 3), int), np.ones((2, 3), bool), ShapeError, "labels: found bool"),
        (np.array(1), np.array(1), ShapeError, "single number"),
        (np.ones((2, 3), int), np.zeros((2, 3), int), DistillError, "no voxel to count among 6"),
        (np.ones((0, 3), int), np.ones((0, 3), int), DistillError, "no voxel to count among 0"),
    ],
)
def test_refuses(segmentation: Labels, labels: Labels, error: type[DistillError], message: str) -> None:
    with pytest.raises(error, match=message):
        score(segmentation, labels)


def test_refuses_what_a_preset_cannot_do() -> None:
    ones = np.ones((2, 4, 4), int)
    with pytest.raises(DistillError, match="found 'snemi', expected one of skimage, cremi"):
        score(ones, ones, "snemi")
    with pytest.raises(DistillError, match="resolution: found none"):
        score(ones, ones, "cremi")
    with pytest.raises(ShapeError, match="expected z, y, x"):
        score(ones[0], ones[0], "cremi", resolution=(40, 4, 4))
    checkered = np.indices((2, 4, 4)).sum(0) % 2 + 1
    with pytest.raises(DistillError, match="away from borders"):
        score(checkered, checkered, "cremi", resolution=(40, 4, 4))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(2, 9), st.integers(3, 20), st.integers(3, 20)),
    st.sampled_from([(40.0, 4.0, 4.0), (30.0, 9.0, 6.0), (50.0, 25.0, 12.5)]),
    st.sampled_from(["skimage", "cremi"]),
)
def test_blocks_add_up_to_the_whole(
    seed: int, block: tuple[int, int, int], resolution: tuple[float, float, float], preset: str
) -> None:
    """Cut along every axis, added in any order, with just the labels around that the border mask asks for."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (4, 3, 3)).repeat(9, 1).repeat(11, 2)
    segmentation = np.where(rng.random(labels.shape) < 0.7, labels, rng.integers(0, 6, labels.shape))
    whole = Contingency(preset, resolution=resolution)
    whole.add(segmentation, labels)
    reach = border_reach(resolution)
    starts = [(z, y, x) for z in range(0, 4, block[0]) for y in range(0, 27, block[1]) for x in range(0, 33, block[2])]
    total = Contingency(preset, resolution=resolution)
    for k in rng.permutation(len(starts)):
        z, y, x = starts[k]
        stop = [min(a + b, n) for a, b, n in zip(starts[k], block, labels.shape, strict=True)]
        (top, bottom), (left, right) = (
            (min(r, a), min(r, n - e)) for r, a, e, n in zip(reach, (y, x), stop[1:], labels.shape[1:], strict=True)
        )
        part = Contingency(preset, resolution=resolution)
        wide = labels[z : stop[0], y - top : stop[1] + bottom, x - left : stop[2] + right]
        part.add(segmentation[z : stop[0], y : stop[1], x : stop[2]], wide, ((top, bottom), (left, right)))
        total.update(part)
    assert (total.voxels, total.counted) == (whole.voxels, whole.counted)
    if not whole.counted:
        with pytest.raises(DistillError, match="no voxel to count"):
            total.pairs()
        return
    for name in ("u", "v", "count"):
        np.testing.assert_array_equal(getattr(total.pairs(), name), getattr(whole.pairs(), name))
    assert total.scores() == whole.scores()


def test_tables_are_joined_before_they_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.evaluation.contingency._SPARE_PAIRS", 10)
    rng = np.random.default_rng(0)
    table, whole = Contingency(), Contingency()
    parts = rng.integers(1, 6, (40, 2, 3, 3, 3))
    for segmentation, labels in parts:
        part = Contingency()
        part.add(segmentation, labels)
        table.update(part)
        assert sum(len(one.u) for one in table._parts) <= 3 * 25 + 10
    whole.add(parts[:, 0], parts[:, 1])
    assert table.scores() == whole.scores()


def test_tables_of_two_presets_do_not_mix() -> None:
    with pytest.raises(DistillError, match="found a table of 'cad', expected one of 'agq'"):
        Contingency("agq").update(Contingency("cad"))


def test_labels_that_do_not_reach_as_far_as_said() -> None:
    ones = np.ones((2, 4, 4), int)
    with pytest.raises(ShapeError, match=r"found shape \(2, 4, 4\), expected that of labels \(2, 5, 5\) less 1 rows"):
        Contingency().add(ones, np.ones((2, 5, 5), int), ((1, 0), (0, 0)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bits_of_objects_add_up_to_the_scores(seed: int) -> None:
    segmentation, labels = random_pair(seed)
    table = Contingency()
    table.add(segmentation, labels)
    found, scores = object_bits(table), table.scores()
    assert found.split.sum() == pytest.approx(scores.voi_split, abs=1e-12)
    assert found.merge.sum() == pytest.approx(scores.voi_merge, abs=1e-12)
    for k, number in enumerate(found.id):
        inside = segmentation[labels == number]
        assert found.voxels[k] == inside.size
        kept = segmentation[labels != 0]
        size = {int(s): int((kept == s).sum()) for s in np.unique(inside)}
        merge = sum(math.log2(size[int(s)] / int((inside == s).sum())) for s in inside) / kept.size
        split = sum(math.log2(inside.size / int((inside == s).sum())) for s in inside) / kept.size
        assert (found.split[k], found.merge[k]) == (pytest.approx(split), pytest.approx(merge))


def dense_cremi(segmentation: Labels, labels: Labels, resolution: tuple[float, float, float]) -> tuple[float, ...]:
    """VOI split, VOI merge and ARAND of CREMI's protocol from dense tables: conditional entropies of the joint
    distribution, and F1 of sums of squares; segment 0 falls into objects of one voxel each in the latter."""
    kept = ~mask_oracle(labels, resolution, 25.0) & (labels != 0)
    size = labels.size
    table = np.zeros((int(labels.max()) + 1, int(segmentation.max()) + 1))
    np.add.at(table, (labels[kept].astype(int), segmentation[kept].astype(int)), 1)
    p = table / table.sum()
    joint, true, pred = (-sum(v * math.log2(v) for v in q.ravel() if v) for q in (p, p.sum(1), p.sum(0)))
    q = table / size
    truth = (q.sum(1) ** 2).sum()
    predicted = (q[:, 1:].sum(0) ** 2).sum() + q[:, 0].sum() / size**2
    both = (q[:, 1:] ** 2).sum() + q[:, 0].sum() / size**2
    return joint - true, joint - pred, 1 - 2 * both / (truth + predicted)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(40.0, 4.0, 4.0), (30.0, 6.0, 10.0)]))
def test_cremi_equals_a_dense_implementation(seed: int, resolution: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 4, (2, 2, 2)).repeat(14, 1).repeat(15, 2)
    segmentation = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(0, 5, labels.shape))
    found = score(segmentation, labels, "cremi", resolution=resolution)
    expected = dense_cremi(segmentation, labels, resolution)
    np.testing.assert_allclose((found.voi_split, found.voi_merge, found.arand), expected, atol=1e-9, rtol=0)
    assert found.cremi_score == pytest.approx(math.sqrt(sum(expected[:2]) * max(expected[2], 0)), abs=1e-9)
