"""When two regions become one: the linked regions against sets that are merged one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from distill.segmentation.merge_tree import NEVER, joined_at, linked


@pytest.mark.parametrize("seed", range(20))
def test_regions_become_one_at_the_merge_of_their_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions = int(rng.integers(2, 30))
    sets = [{k} for k in range(regions)]
    sizes = rng.integers(1, 100, regions)
    keeps, goes, smaller, when = [], [], [], {}
    for merge in range(int(rng.integers(0, regions))):
        a, b = rng.choice(len(sets), 2, replace=False)
        keeps.append(int(rng.choice(sorted(sets[a]))))  # any region of either side stands for it
        goes.append(int(rng.choice(sorted(sets[b]))))
        smaller.append(min(sizes[sorted(side)].sum() for side in (sets[a], sets[b])))
        when |= {frozenset((one, other)): merge for one in sets[a] for other in sets[b]}
        sets[a] |= sets[b]
        del sets[b]
        if len(sets) == 1:
            break
    parent, at, found = linked(np.array(keeps, np.int32), np.array(goes, np.int32), sizes)
    assert found.tolist() == smaller
    first, second = (ends.astype(np.int32) for ends in np.triu_indices(regions, 1))
    wanted = [when.get(frozenset(pair), NEVER) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert joined_at(parent, at, first, second).tolist() == wanted
    assert joined_at(parent, at, second, first).tolist() == wanted
