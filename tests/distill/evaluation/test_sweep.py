"""A sweep says what segmenting and scoring by hand says, and later runs take what it chose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box
from distill.evaluation.metrics import score
from distill.inference.thresholds import threshold_from_file
from distill.io.volume import open_labels, open_volume
from distill.segmentation.agglomeration import merge_by_mean_affinity, waterz
from distill.segmentation.mutex_watershed import mutex_watershed
from distill.segmentation.supervoxels import supervoxels

pytest.importorskip("waterz", reason="needs the baselines extra")
pytest.importorskip("mwatershed", reason="needs the baselines extra")

LABELS = "volumes/labels/neuron_ids"


@pytest.fixture(scope="module")
def streamed(
    run: Path, phantom: Path, cli: Callable[..., Any], cpu: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Store of a stream over sections 4 to 15 of the phantom."""
    out = tmp_path_factory.mktemp("swept") / "out.zarr"
    said = cli(
        "stream",
        f"{phantom}:volumes/raw",
        "--model",
        run,
        "--sections",
        "4:16",
        "--method",
        "query",
        "--out",
        out,
        *cpu,
    )
    assert said.code == 0, said.err
    return out


@pytest.mark.commands("sweep", "finish")
def test_numbers_are_those_of_each_method_by_itself(
    streamed: Path, phantom: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "swept"
    words = ("--flood", "0.2,0.5", "--query", "0.5,0.8,1", "--waterz", "0.3,0.6", "--mws", "0.4,0.6")
    words += ("--methods", "flood,query,waterz,mws")
    said = cli("sweep", f"{streamed}:affinity", f"{phantom}:{LABELS}", "--out", out, *words)
    assert said.code == 0, said.err
    found = json.loads((out / "sweep.json").read_text())
    assert found["preset"] == "skimage"
    assert found["made_by"]["source"] == f"{phantom}:volumes/raw"
    truth = open_labels(f"{phantom}:{LABELS}").read(Box((4, 0, 0), (16, 96, 96))).astype(np.uint64)
    edges = from_uint8(open_volume(f"{streamed}:affinity").read())
    for method, rows in found["methods"].items():
        for row in rows["thresholds"]:
            threshold = row["threshold"]
            if method == "query":
                again = cli("finish", streamed, "--merge", threshold)
                assert again.code == 0, again.err
                segmentation = open_volume(f"{streamed}:segmentation").read()
            elif method == "flood":
                segmentation = merge_by_mean_affinity(supervoxels(edges), edges, threshold)
            elif method == "waterz":
                segmentation = waterz(edges, [threshold])[threshold]
            else:
                segmentation = mutex_watershed(edges, NEAREST, bias=threshold)
            expected = score(segmentation, truth)
            assert row["voi_split"] == pytest.approx(expected.voi_split, abs=1e-12)
            assert row["voi_merge"] == pytest.approx(expected.voi_merge, abs=1e-12)
            assert row["arand"] == pytest.approx(expected.arand, abs=1e-12)
            assert row["objects"] == segmentation.max()
        least = min(rows["thresholds"], key=lambda row: row["voi"])
        assert rows["chosen"]["threshold"] == least["threshold"] == threshold_from_file(out / "thresholds.yaml", method)
    assert (out / "sweep.png").stat().st_size > 0
    assert said.out.count("*") == 5  # one a method, one in the heading
    assert "what they score on other sections is not known" in said.out
    assert "waterz: 0.3 is the lowest threshold" in said.out or "waterz: 0.6 is the highest threshold" in said.out
    json.loads((out / "sweep.run.json").read_text())


def test_query_from_a_model_is_query_from_its_stream(
    streamed: Path, run: Path, phantom: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    tables = []
    for words in ((), ("--model", run, "--source", f"{phantom}:volumes/raw", "--precision", "32-true")):
        out = tmp_path / f"swept{len(words)}"
        fixed = ("--methods", "query", "--query", "0.6,1")
        said = cli("sweep", f"{streamed}:affinity", f"{phantom}:{LABELS}", "--out", out, *fixed, *words)
        assert said.code == 0, said.err
        rows = json.loads((out / "sweep.json").read_text())["methods"]["query"]["thresholds"]
        tables.append([[row[key] for key in ("threshold", "voi_split", "voi_merge", "objects")] for row in rows])
    np.testing.assert_allclose(*tables, rtol=1e-6)


def test_later_runs_take_the_file(
    streamed: Path, run: Path, phantom: Path, cli: Callable[..., Any], cpu: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "thresholds.yaml"
    file.write_text("methods: {flood: {threshold: 0.65}, waterz: {threshold: 0.35}}\n")
    source = (f"{phantom}:volumes/raw", "--sections", "4:6", "--model", run, *cpu)

    def used(out: Path) -> float:
        return float(json.loads((out / "zarr.json").read_text())["attributes"]["made_by"]["merge_threshold"])

    said = cli("stream", *source, "--merge", "0.9", "--out", tmp_path / "s.zarr")
    assert (said.code, used(tmp_path / "s.zarr")) == (0, 0.9), said.err
    said = cli("finish", tmp_path / "s.zarr", "--thresholds", file)
    assert (said.code, used(tmp_path / "s.zarr")) == (0, 0.65), said.err
    said = cli("segment", *source, "--method", "waterz", "--thresholds", file, "--out", tmp_path / "w.zarr")
    assert (said.code, used(tmp_path / "w.zarr")) == (0, 0.35), said.err
    both = cli("finish", streamed, "--thresholds", file, "--merge", "0.5")
    assert (both.code, "--thresholds: found --merge as well" in both.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "watershed"), "--methods: found 'watershed', expected some of flood, query, waterz, mws"),
        (("--methods", "mws", "--waterz", "0.5"), "--waterz: found no waterz in --methods mws"),
        (("--mws", "3"), "--mws: found '3', expected numbers from 0 to 1"),
        (("--model", "ac4"), "--model, --source: expected both or none"),
        (("--preset", "none", "--methods", "waterz"), "preset"),
    ],
)
def test_wrong_use(
    streamed: Path, phantom: Path, cli: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    said = cli("sweep", f"{streamed}:affinity", f"{phantom}:{LABELS}", "--out", tmp_path / "x", *words)
    assert (said.code, message in said.err) == (2, True), said.err
    assert not (tmp_path / "x").exists()


def test_sources_that_do_not_fit(streamed: Path, phantom: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    def refused(affinity: object, *words: str) -> str:
        said = cli("sweep", affinity, f"{phantom}:{LABELS}", "--out", tmp_path / "x", *words)
        assert said.code == 2
        return str(said.err)

    assert "expected affinities with channels, such as OUT.zarr:affinity" in refused(f"{streamed}:segmentation")
    bare = tmp_path / "bare.npz"
    np.savez(bare, affinity=np.zeros((3, 2, 96, 96), np.uint8))
    assert "no resolution" in refused(f"{bare}:affinity")
