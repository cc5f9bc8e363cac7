"""SWC files: what is read, and the errors of malformed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import SourceError
from distill.evaluation.run_length.skeletons import read_skeletons, read_swc

Y = """# ORIGINAL_SOURCE by hand
 1 1 10.5 20 30 1.0 -1   # the soma
2 3 10.5 20 40 0.5 1

7 3 13.5 24 40 0.5 2
3 3 10.5 20 52 0.5 2
"""


def written(folder: Path, text: str, name: str = "a.swc") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_branching_neuron(tmp_path: Path) -> None:
    found = read_swc(written(tmp_path, Y, "neuron 12.swc"))
    assert found.name == "neuron 12"
    np.testing.assert_array_equal(found.nodes, [[30, 20, 10.5], [40, 20, 10.5], [40, 24, 13.5], [52, 20, 10.5]])
    np.testing.assert_array_equal(found.edges, [[1, 0], [2, 1], [3, 1]])
    np.testing.assert_array_equal(found.lengths, [10, 5, 12])


def test_parents_may_come_later_and_trees_be_several(tmp_path: Path) -> None:
    text = "5 0 0 0 0 1 9\n9 0 3 0 0 1 -1\n2 0 0 0 7 1 -1 extra columns\n"
    found = read_swc(written(tmp_path, text))
    np.testing.assert_array_equal(found.edges, [[0, 1]])
    assert found.lengths.tolist() == [3]


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=60), st.randoms(use_true_random=False))
def test_written_and_read(tmp_path_factory: pytest.TempPathFactory, numbers: list[float], random: object) -> None:
    places = np.array(numbers[: len(numbers) // 3 * 3]).reshape(-1, 3)
    parents = [-1, *(random.randrange(k) for k in range(1, len(places)))]  # type: ignore[attr-defined]
    lines = [
        f"{k + 1} 0 {x!r} {y!r} {z!r} 1 {p + 1 if p >= 0 else -1}"
        for k, ((z, y, x), p) in enumerate(zip(places.tolist(), parents, strict=True))
    ]
    found = read_swc(written(tmp_path_factory.mktemp("swc"), "\n".join(lines)))
    np.testing.assert_array_equal(found.nodes, places)
    assert found.edges.tolist() == [[k, p] for k, p in enumerate(parents) if p >= 0]


def test_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.swc", "a.SWC", "notes.txt"):
        written(tmp_path, Y, name)
    assert [one.name for one in read_skeletons(tmp_path)] == ["a", "b"]
    assert [one.name for one in read_skeletons(tmp_path / "b.swc")] == ["b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 0 1 2 3 1 -1\n2 0 1 2 3 1\n", "a.swc, line 2: found 6 columns, expected 7"),
        ("# ok\n\n1 0 1 zwei 3 1 -1\n", "a.swc, line 3: found '1 0 1 zwei 3 1 -1', expected numbers"),
        ("1.5 0 1 2 3 1 -1\n", "line 1: found '1.5 0 1 2 3 1 -1', expected numbers"),
        ("1 0 1 nan 3 1 -1\n", "line 1: found place 1.0, nan, 3.0, expected finite numbers"),
        ("1 0 inf 2 3 1 -1\n", "expected finite numbers"),
        ("1 0 1 2 3 1 -1\n1 0 1 2 4 1 1\n", "line 2: found node 1 a second time"),
        ("1 0 1 2 3 1 -1\n2 0 1 2 4 1 7\n", "line 2: found parent 7, expected the id of a node, or -1"),
        ("-3 0 1 2 3 1 -1\n", "line 1: found id -3"),
        ("1 0 1 2 3 1 2\n2 0 1 2 4 1 1\n", "a.swc: found parents that go round in a circle"),
        ("1 0 1 2 3 1 1\n", "round in a circle"),
        ("# nothing\n\n", "a.swc: found no node"),
        ("", "a.swc: found no node"),
    ],
)
def test_malformed(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SourceError) as error:
        read_swc(written(tmp_path, text))
    assert says in str(error.value)
    assert str(tmp_path / "a.swc") in str(error.value)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file that ends in \.swc"):
        read_skeletons(tmp_path)
    with pytest.raises(SourceError, match=r"none\.swc: no such file or folder"):
        read_skeletons(tmp_path / "none.swc")
    (tmp_path / "a.swc").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(SourceError, match=r"a\.swc: cannot be read"):
        read_swc(tmp_path / "a.swc")
