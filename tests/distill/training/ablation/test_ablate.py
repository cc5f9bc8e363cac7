"""An ablation trains what it says, skips what is finished, chooses on validation, scores on test, and counts right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.config import Pair, load_pair
from distill.core.errors import ConfigError, DistillError
from distill.core.normalisation import Normalisation, Normaliser
from distill.evaluation.metrics import score
from distill.inference.options import Runtime
from distill.io.volume import open_volume, volume_from_array
from distill.models.checkpoint import read_weights
from distill.models.load import find_weights
from distill.training.ablation import ablate as recipe
from distill.training.ablation import scores as ablation_scores
from distill.training.ablation.ablate import VARIANTS, plan, steps_in_words, variant_of
from distill.training.ablation.scores import (
    WATERZ_THRESHOLDS,
    MethodScores,
    Network,
    NetworkScores,
    ScoredParts,
    score_network,
)
from distill.training.ablation.table import Row, comparison, markdown, spread
from distill.training.data import LabelledPart, open_data
from distill.training.schedule.phases import with_steps
from distill.training.schedule.planned_steps import Trial, write_steps
from distill.training.validation import pooled
from viz.charts.ablation import bars

SHORT = (
    *("student.training.steps=2", "student.training.teacher_every=1", "student.training.warmup=0"),
    "teacher.decoder.seeds.kind=mean",  # no thresholds to try at validation
)
CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "phantom_cpu"


@pytest.fixture
def pair(tiny: tuple[str, ...], phantom: Path) -> Callable[..., Pair]:
    """The tiny pair on the phantom, with further words."""

    def load(*words: str) -> Pair:
        with mock.patch.dict(os.environ, {"PHANTOM": str(phantom)}):
            return load_pair(CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", [*tiny, *words])

    return load


@pytest.fixture
def ablation(no_pictures: None, cli: Callable[..., Any], phantom: Path, tiny: tuple[str, ...]) -> Callable[..., Any]:
    """`distill ablate` of the tiny pair."""

    def run(out: Path, *words: object) -> Any:
        files = CONFIGS / "teacher.yaml", CONFIGS / "student.yaml"
        with mock.patch.dict(os.environ, {"PHANTOM": str(phantom)}):
            return cli("ablate", *files, *tiny, *SHORT, "--device", "cpu", "--out", out, *words)

    return run


def test_variants_differ_in_their_terms_alone(pair: Callable[..., Pair]) -> None:
    given = pair("student.loss.cross=0.5", "student.loss.masks=0.25", "student.loss.graft=0")
    weights = {"cross": 0.5, "graft": 1.0, "masks": 0.25}
    for name, terms in VARIANTS.items():
        made = variant_of(given, name, 7)
        for term, weight in weights.items():
            assert getattr(made.student.loss, term) == (weight if term in terms else 0), (name, term)
        assert made.student.training.seed == 7
        assert made.teacher_runs == bool(terms)
        loss = made.student.loss.model_copy(update={term: getattr(given.student.loss, term) for term in weights})
        training = made.student.training.model_copy(update={"seed": given.student.training.seed})
        same = made.student.model_copy(update={"loss": loss, "training": training})
        assert same == given.student
        if terms:
            assert made.teacher == given.teacher
    frozen = pair("teacher.weights=run", "teacher.frozen=true", "student.loss.masks=0.25")
    alone = variant_of(frozen, "none", 7)
    assert not alone.teacher_runs
    assert alone.teacher.weights == "run"  # for the decoder, which begins as in the other variants


def test_variants_that_cannot_be(pair: Callable[..., Pair], tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--variants: found 'all', expected some of none, cross"):
        variant_of(pair(), "all", 0)
    plain = pair("teacher.embedding=0", "teacher.loss.multi_offset=0", "student.loss.graft=0", "student.loss.cross=0")
    with pytest.raises(ConfigError, match=r"variant 'graft', .*student\.loss\.graft: compares embeddings"):
        variant_of(plain, "graft", 0)
    for variants, seeds in (([], [0]), (["none", "none"], [0]), (["none"], []), (["none"], [1, 1])):
        with pytest.raises(DistillError, match="expected at least one, and none twice"):
            plan(pair(), tmp_path, variants, seeds)


def test_all_variants_of_a_seed_come_before_the_next_seed(pair: Callable[..., Pair], tmp_path: Path) -> None:
    runs = plan(pair(), tmp_path, ["none", "both"], [3, 5])
    assert [run.folder.name for run in runs] == ["none-s3", "both-s3", "none-s5", "both-s5"]


def test_steps_of_runs_by_time_are_their_own(pair: Callable[..., Pair], tmp_path: Path) -> None:
    by_steps = plan(pair("student.training.steps=1234"), tmp_path, ["none", "both"], [1])
    assert steps_in_words(by_steps) == "1,234 steps"
    runs = plan(pair("student.training.steps=20", "student.training.minutes=1.5"), tmp_path, ["none", "both"], [1])
    for run, count in zip(runs, (1200, 30), strict=True):
        run.folder.mkdir()
        write_steps(run.folder, run.config, with_steps(run.config, count), Trial({}, 0))
    assert steps_in_words(runs) == "1.5 minutes each, which were 30 to 1,200 steps,"
    assert steps_in_words(runs[:1]) == "1.5 minutes each, which were 1,200 steps,"


def test_an_ablation_from_the_command_line(ablation: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    words = ("--variants", "none,both+masks", "--seeds", "1", "student.data.test=[16,20]")
    said = ablation(out, *words)
    assert said.code == 0, said.err
    for variant, teacher in (("none", False), ("both+masks", True)):
        folder = out / f"{variant}-s1"
        assert (folder / "best" / "student.safetensors").exists()
        assert (folder / "best" / "teacher.safetensors").exists() == teacher
        terms = set(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]))
        assert {"cross", "graft", "masks"} & terms == ({"cross", "graft", "masks"} if teacher else set())
    table = (out / "ablation.md").read_text()
    assert table.rstrip() in said.out
    assert "phantom.h5: trained on sections 0 to 11, 2 steps of 1 x 3 x 32 x 32, seeds 1" in table
    assert "Scores: sections 16 to 19 (test)" in table
    assert "were chosen on: differences" not in table
    assert {line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| student, ")} == {
        "student, none",
        "student, both+masks",
    }
    found = json.loads((out / "ablation.json").read_text())
    assert [(row["variant"], row["seed"], row["network"]) for row in found["rows"]] == [
        ("none", 1, "student"),
        ("both+masks", 1, "student"),
        ("both+masks", 1, "teacher"),
    ]
    assert all(row["scores"]["query"]["voi"] >= 0 for row in found["rows"])
    assert (out / "ablation.png").stat().st_size > 10_000

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    state = out / "none-s1" / "run.json"
    state.write_text(state.read_text().replace('"ended": "done"', '"ended": "Interrupted: by hand"'))
    with mock.patch.object(recipe, "score_weights", wraps=recipe.score_weights) as scoring:
        again = ablation(out, *words)
    assert again.code == 0, again.err
    assert again.err.count(" is finished") == 1  # and the other resumes where it was, which is its end
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == stamps
    assert scoring.call_count == 3
    assert (out / "ablation.md").read_text() == table

    other = ablation(out, *words, "student.training.lr=0.01")
    assert other.code == 2
    assert "a finished run of another configuration; expected that of variant 'none', or another --out" in other.err


@pytest.mark.commands("ablate")
def test_without_test_sections_the_table_says_so(ablation: Callable[..., Any], tmp_path: Path, run: Path) -> None:
    words = ("--variants", "cross", "--seeds", "1", f"teacher.weights={run}", "teacher.frozen=true")
    said = ablation(tmp_path / "out", *words, "teacher.queries.teacher=0")
    assert said.code == 0, said.err
    assert "(validation), preset skimage" in said.out
    assert "The scored sections are those that checkpoints and thresholds were chosen on" in said.out
    rows = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
    assert [(row["variant"], row["network"]) for row in rows] == [("cross", "student"), ("", "teacher")]
    assert (tmp_path / "out" / "scores_teacher.json").exists()


def test_bad_words(ablation: Callable[..., Any], tmp_path: Path) -> None:
    for words, said in (
        (("--variants", "none,half"), "--variants: found 'half'"),
        (("--seeds", "0,x"), "--seeds: found '0,x', expected numbers from 0"),
        (("student.data.test=[14,18]",), "test: [14, 18] overlaps validation [12, 16]"),
        (("student.data.test=[16,30]",), "student.data.test: ends at section 30"),
        (("teacher.weights=nowhere",), "nowhere: no such file or run folder"),
    ):
        found = ablation(tmp_path / "out", *words)
        assert found.code == 2, words
        assert said in found.err
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Planned:
    """A segmentation that is right at one threshold and one object everywhere else."""

    truth: NDArray[np.uint64]
    right: float | None
    affinity: NDArray[np.float32]

    def labels(self, threshold: float | None) -> NDArray[np.uint64]:
        return self.truth if threshold == self.right else np.ones_like(self.truth)


def planned_parts() -> ScoredParts:
    rng = np.random.default_rng(0)
    parts = []
    for value in (1, 2):
        labels = rng.integers(1, 4, (2, 4, 4)).repeat(3, 1).repeat(3, 2).astype(np.uint64)
        raw = np.full(labels.shape, value, np.uint8)
        volume = volume_from_array(raw, (30, 6, 6))
        parts.append([LabelledPart(raw, labels, volume, volume.box, "planned")])
    return ScoredParts(*parts)


def test_thresholds_are_chosen_on_validation_and_applied_to_test() -> None:
    parts = planned_parts()
    (chosen,), (test,) = parts.validation, parts.test
    flat = np.full((3, *test.labels.shape), 0.9, np.float32)

    def segment(raw: NDArray[Any]) -> Any:
        return Planned(chosen.labels, 0.7, flat) if raw[0, 0, 0] == 1 else Planned(test.labels, 0.4, flat)

    found = score_network(segment, parts, 5, with_waterz=False)
    assert found.query.threshold == 0.7
    wrong = score(np.ones_like(test.labels), test.labels)
    assert found.query == MethodScores(wrong.voi_split, wrong.voi_merge, wrong.voi_sum, wrong.arand, 0.7)
    assert found.step == 5
    assert found.waterz_published is None
    assert found.boundary_f1_zyx == (0, 0, 0)  # nothing is cut
    on_validation = score_network(segment, replace(parts, test=()), 5, with_waterz=False)
    assert on_validation.query.voi == 0


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_boxes_are_normalised_by_their_whole_sections(
    network: Network, pair: Callable[..., Pair], phantom: Path, tmp_path: Path
) -> None:
    raw = open_volume(phantom).read()
    entry = {"raw": str(phantom), "labels": str(phantom), "train": [0, 8], "validation": [[12, 16], [8, 72], [16, 96]]}
    config = pair(f"student.data={json.dumps({'volumes': [entry]})}")
    runtime, seen = Runtime(torch.device("cpu"), "32-true"), []

    class Enough(Exception):
        pass

    def volume(model: Any, sections: Any, *others: Any) -> Any:
        seen.append(model.normaliser.sections(np.stack(list(sections))))
        raise Enough

    weights = find_weights("ac4", network)
    own = Normaliser(Normalisation.model_validate(read_weights(weights).config["normalisation"]))
    with mock.patch.object(ablation_scores, f"{network}_volume", volume), pytest.raises(Enough):
        ablation_scores.score_weights(
            weights, network, open_data(config), config.student.data, runtime, tmp_path / "kept", with_waterz=False
        )
    np.testing.assert_array_equal(seen[0], own.sections(raw[12:16])[:, 8:72, 16:96])
    assert not np.array_equal(seen[0], own.sections(raw[12:16, 8:72, 16:96]))


def test_several_volumes_are_scored_as_one() -> None:
    parts = planned_parts()
    both = ScoredParts([*parts.validation, *parts.test])
    flat = np.full((3, *parts.test[0].labels.shape), 0.9, np.float32)

    def segment(raw: NDArray[Any]) -> Any:
        return Planned(both.validation[int(raw[0, 0, 0]) - 1].labels, 0.7 if raw[0, 0, 0] == 1 else 0.4, flat)

    found = score_network(segment, both, None, with_waterz=False)
    each = [[part.labels, np.ones_like(part.labels)] for part in both.validation]
    at = {0.7: (each[0][0], each[1][1]), 0.4: (each[0][1], each[1][0])}
    means = {
        t: pooled([score(ids, part.labels) for ids, part in zip(pair, both.validation, strict=True)])
        for t, pair in at.items()
    }
    best = min(means, key=lambda t: means[t].voi_sum)
    assert found.query.threshold == best
    assert found.query.voi == means[best].voi_sum


def test_waterz_at_the_published_threshold_and_at_the_one_chosen_on_validation() -> None:
    pytest.importorskip("waterz")
    parts = planned_parts()
    (chosen,), (test,) = parts.validation, parts.test
    from distill.segmentation.agglomeration import waterz

    rng = np.random.default_rng(1)
    affinity = {1: rng.random((3, 2, 12, 12), np.float32), 2: rng.random((3, 2, 12, 12), np.float32)}

    def segment(raw: NDArray[Any]) -> Any:
        return Planned(chosen.labels, None, affinity[int(raw[0, 0, 0])])

    found = score_network(segment, parts, None, with_waterz=True)
    tried = {t: score(ids, chosen.labels).voi_sum for t, ids in waterz(affinity[1], WATERZ_THRESHOLDS).items()}
    best = min(tried, key=lambda t: tried[t])
    of_test = {t: score(ids, test.labels) for t, ids in waterz(affinity[2], [0.5, best]).items()}
    assert found.waterz_published is not None
    assert found.waterz_chosen is not None
    assert found.waterz_published.threshold == 0.5
    assert found.waterz_chosen.threshold == best
    assert found.waterz_published.voi == of_test[0.5].voi_sum
    assert found.waterz_chosen.voi == of_test[best].voi_sum


def scores(voi: float, waterz: float | None = None) -> NetworkScores:
    def method(value: float, threshold: float) -> MethodScores:
        return MethodScores(value * 0.75, value * 0.25, value, value / 10, threshold)

    other = None if waterz is None else method(waterz, 0.6)
    return NetworkScores(9, method(voi, 0.8), other, other, (0.5, 0.6, 0.7))


ROWS = [
    Row("none", 0, "student", scores(1.0, 2.0)),
    Row("none", 1, "student", scores(1.2, 2.0)),
    Row("both", 0, "student", scores(0.9, 1.0)),
    Row("both", 1, "student", scores(0.86)),
    Row("", None, "teacher", scores(0.8)),
]


def test_the_table_gives_means_and_ranges() -> None:
    lines = markdown(ROWS, ["about"]).splitlines()
    assert lines[0] == "about"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert ["student, none", "2", "query decoder", "0.825 (0.750 to 0.900)", "0.275 (0.250 to 0.300)",
            "1.100 (1.000 to 1.200)", "0.110 (0.100 to 0.120)", "0.8"] in cells  # fmt: skip
    assert ["student, both", "1", "waterz, chosen", "0.750", "0.250", "1.000", "0.100", "0.6"] in cells
    assert ["teacher", "1", "query decoder", "0.600", "0.200", "0.800", "0.080", "0.8"] in cells
    assert ["teacher", "1", "0.500", "0.600", "0.700"] in cells
    assert spread([0.5]) == "0.500"
    aligned = [line for line in lines if line.startswith("| student") or line.startswith("| teacher")]
    assert len({len(line) for line in aligned[:7]}) == 1


def test_distilled_students_are_held_against_the_student_alone_and_the_teacher() -> None:
    assert comparison(ROWS) == [
        "- VOI of both, query decoder: -20.0 % against none, +10.0 % against its teacher",
        "- VOI of both, waterz at 0.5: -50.0 % against none",
        "- VOI of both, waterz, chosen: -50.0 % against none",
    ]
    assert comparison(ROWS[:2]) == []


def test_bars_are_runs_and_lines_are_teachers() -> None:
    runs, lines = bars(ROWS)
    assert [run.value for run in runs if (run.variant, run.score, run.series) == ("both", "voi", "query decoder")] == [
        0.9,
        0.86,
    ]
    assert len(runs) == 2 * (4 + 3 + 3)
    assert [(line.variant, line.score, line.value) for line in lines] == [
        ("teacher, query decoder", "voi", 0.8),
        ("teacher, query decoder", "arand", 0.08),
    ]
