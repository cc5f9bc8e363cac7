"""Affinities of a file against its ground truth: by blocks as by the whole, edge by edge, and what is refused."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from distill.core.affinity import NEAREST, affinity_targets, as_label_tensor
from distill.core.affinity_conventions import attributes, from_uint8
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Triple
from distill.evaluation.affinities import affinity_scores, count_edges, evaluate_affinity
from distill.evaluation.aligned import align
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr

NM = (40.0, 4.0, 8.0)
FAR: tuple[Triple, ...] = (*NEAREST, (-2, 0, 0), (0, -3, 2), (1, 4, 0))


def written(folder: Path, values: np.ndarray, offsets: tuple[Triple, ...], chunks: Triple, **about: object) -> str:
    array = create_zarr(
        folder / "out.zarr",
        "affinity",
        shape=values.shape,
        dtype=values.dtype,
        resolution=NM,
        offset=(40, 8, 0),
        chunks=(len(values), *chunks),
        attributes=attributes(offsets) | about,
        overwrite=True,
    )
    array.write(Box.of_shape(values.shape[1:]), values)
    return f"{folder / 'out.zarr'}:affinity"


def truth(seed: int, folder: Path) -> tuple[np.ndarray, str]:
    labels = np.random.default_rng(seed).integers(0, 4, (6, 4, 3)).repeat(4, 1).repeat(5, 2).astype(np.uint64)
    labels[labels == 3] = 2**63 + 3
    write_cremi(folder / "truth.h5", labels=labels, resolution=NM)
    return labels[1:6, 2:14, :12], str(folder / "truth.h5")


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 5), st.integers(2, 12), st.integers(2, 12)),
    st.integers(1, 2000),
    st.booleans(),
)
def test_blocks_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, chunks: Triple, most: int, labelled_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("edges")
    labels, whole = truth(seed, folder)
    values = np.random.default_rng(seed).integers(0, 256, (len(FAR), *labels.shape), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.aligned.BLOCK_VOXELS", most)
        found = evaluate_affinity(written(folder, values, FAR, chunks), whole, labelled_only=labelled_only)
    targets = affinity_targets(as_label_tensor(labels), FAR)
    target, valid = targets.target.numpy(), targets.valid.numpy()
    if labelled_only:
        for k, offset in enumerate(FAR):
            for p in np.ndindex(*labels.shape):
                q = tuple(a + b for a, b in zip(p, offset, strict=True))
                if valid[(k, *p)]:
                    valid[(k, *p)] = bool(labels[p]) and bool(labels[q])
    expected = affinity_scores(from_uint8(values), target, valid)
    assert [one.scores for one in found.channels] == expected
    assert [one.offset for one in found.channels] == list(FAR)
    assert found.exact
    for k, one in enumerate(found.channels):
        truth_k, score = target[k][valid[k]] > 0.5, values[k][valid[k]].astype(float)
        if truth_k.any() and not truth_k.all():
            numbers = one.to_dict()
            assert numbers["roc_auc"] == pytest.approx(roc_auc_score(truth_k, score), abs=1e-9)
            expected_ap = average_precision_score(~truth_k, -score)
            assert numbers["boundary_average_precision"] == pytest.approx(expected_ap, abs=1e-9)


def test_perfect_affinities_and_numbers_by_name(tmp_path: Path) -> None:
    labels, whole = truth(1, tmp_path)
    perfect = affinity_targets(as_label_tensor(labels), NEAREST).target.numpy().astype(np.float32)
    found = evaluate_affinity(written(tmp_path, perfect, NEAREST, (5, 12, 12)), whole)
    assert not found.exact
    numbers = found.to_dict()
    assert numbers["edges"] == "all"
    for row, offset in zip(numbers["channels"], NEAREST, strict=True):
        assert row["offset_zyx"] == list(offset)
        assert row["boundary"] == row["connected"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
        assert row["roc_auc"] == row["boundary_average_precision"] == row["connected_average_precision"] == 1.0


def test_work_can_be_sent_to_another_process(tmp_path: Path) -> None:
    labels, whole = truth(2, tmp_path)
    values = np.random.default_rng(2).integers(0, 256, (3, *labels.shape), np.uint8)
    both = align(open_volume(written(tmp_path, values, NEAREST, (5, 6, 12))), open_labels(whole))
    work = partial(count_edges, both, NEAREST, True)
    box = Box((1, 0, 3), (4, 7, 12))
    there, here = pickle.loads(pickle.dumps(work))(box), work(box)
    for one, other in zip(pickle.loads(pickle.dumps(there)), here, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        assert one.counts.any()


def test_refuses(tmp_path: Path) -> None:
    labels, whole = truth(3, tmp_path)
    values = np.zeros((3, *labels.shape), np.uint8)
    with pytest.raises(ShapeError, match="found 3 channels and 6 offsets, expected one each"):
        evaluate_affinity(written(tmp_path, values, FAR, (5, 12, 12)), whole)
    with pytest.raises(DistillError, match="found polarity '1 = boundary', expected '1 = same object'"):
        evaluate_affinity(written(tmp_path, values, NEAREST, (5, 12, 12), polarity="1 = boundary"), whole)
    with pytest.raises(ShapeError, match="affinity: found int32, expected affinities as uint8"):
        evaluate_affinity(written(tmp_path, values.astype(np.int32), NEAREST, (5, 12, 12)), whole)
    wrong = values.astype(np.float32)
    wrong[0, 2] = 7
    with pytest.raises(ShapeError, match=r"affinity: affinities: found values from 0\.0 to 7\.0, expected 0 to 1"):
        evaluate_affinity(written(tmp_path, wrong, NEAREST, (5, 12, 12)), whole)
    with pytest.raises(ShapeError, match=r"found shape \(6, 16, 15\), expected affinities"):
        evaluate_affinity(f"{whole}:volumes/labels/neuron_ids", whole)
    one = values[:, :1, :1, :1]
    with pytest.raises(DistillError, match="found no edge to count"):
        evaluate_affinity(written(tmp_path, one, NEAREST, (1, 1, 1)), whole)
    np.savez(tmp_path / "bare.npz", values=values, resolution=NM, offset=(40, 8, 0))
    with pytest.raises(DistillError, match=r"bare\.npz:values: no attribute 'offsets'"):
        evaluate_affinity(f"{tmp_path / 'bare.npz'}:values", whole)
