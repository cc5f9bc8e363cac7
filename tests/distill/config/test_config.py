"""Configuration files: the ones that come along, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from distill.config import (
    PUBLISHED_DECODER,
    DecoderConfig,
    Pair,
    StudentConfig,
    StudentNetwork,
    TeacherConfig,
    dump,
    load_pair,
)
from distill.config.teacher_kinds import TeacherKind
from distill.core.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
PAIRS = sorted(path.parent.name for path in CONFIGS.glob("*/teacher.yaml"))

TEACHER: dict[str, Any] = {"embedding": 16}
DATA: dict[str, Any] = {"raw": "a.h5:raw", "labels": "a.h5:labels", "train": [0, 8], "validation": [8, 10]}
STUDENT: dict[str, Any] = {"data": DATA}


def load(folder: Path, teacher: Any = TEACHER, student: Any = STUDENT, *overrides: str) -> Pair:
    for name, values in (("teacher", teacher), ("student", student)):
        (folder / f"{name}.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return load_pair(folder / "teacher.yaml", folder / "student.yaml", overrides)


def refusal(folder: Path, teacher: Any = TEACHER, student: Any = STUDENT, *overrides: str) -> str:
    """The message, in one line."""
    with pytest.raises(ConfigError) as caught:
        load(folder, teacher, student, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder) + "/", "")


def test_there_are_pairs_to_start_from() -> None:
    assert {"ac4_cpu", "phantom_cpu"} <= set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_the_pairs_that_come_along_load(name: str) -> None:
    found = load_pair(CONFIGS / name / "teacher.yaml", CONFIGS / name / "student.yaml")
    assert not any("$" in volume.raw + volume.labels for volume in found.student.data.labelled)
    assert found.teacher.kind != "agq" or all(f % 8 == 0 for f in found.teacher.filters)


@pytest.mark.parametrize("kind", get_args(TeacherKind))
def test_every_kind_of_teacher_has_a_file_to_start_from(kind: str) -> None:
    found = load_pair(CONFIGS / "teachers" / f"{kind}.yaml", CONFIGS / "teachers" / "student.yaml")
    assert found.teacher.kind == kind
    assert found.teacher_learns
    assert found.distils
    assert found.teacher.embedding == found.student.embedding


def test_defaults_are_the_published_settings_but_for_seeds_and_prior(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.teacher.filters == (32, 64, 96, 128, 160)
    decoder, queries = found.teacher.decoder, found.teacher.queries
    assert (decoder.width, decoder.depth, decoder.learned, decoder.rounds) == (64, 4, 100, 2)
    assert (decoder.seeds.kind, decoder.prior, decoder.fill) == ("edges", "flood", True)
    published = DecoderConfig.model_validate(PUBLISHED_DECODER)
    assert (published.seeds.kind, published.seeds.min_voxels, published.seeds.max_count) == ("mean", 100, 100)
    assert (published.prior, published.fill, published.min_piece, published.min_instance) == ("none", False, 0, 40)
    assert (queries.cross_entropy, queries.dice, queries.discrimination, queries.samples) == (0.3, 3.0, 0.1, 4096)
    training, loss = found.student.training, found.student.loss
    assert (training.steps, training.warmup, training.lr, training.batch) == (200_000, 10_000, 1e-4, 2)
    assert (training.crop, training.schedule, training.optimizer) == ((18, 160, 160), "constant", "adam")
    assert (loss.slice, loss.cross, loss.graft, loss.graft_distances) == (1, 1, 1, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("student.training.lr=1e-3", 1e-3),
        ("student.training.steps=7", 7),
        ("student.training.crop=[4, 32, 32]", (4, 32, 32)),
        ("student.training.crop=4,32, 32", (4, 32, 32)),
        ("teacher.decoder.seeds.thresholds=0.1,.2,0.3", (0.1, 0.2, 0.3)),
        ("student.training.widen_borders=false", False),
        ("student.data.raw=b=c.h5:raw", "b=c.h5:raw"),
        ("student.loss.detach_teacher=true", True),
        ("teacher.decoder.seeds.thresholds=[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)),
        ("teacher.decoder.seeds.kind=edges", "edges"),
        ("student.data.resolution=null", None),
    ],
)
def test_overrides(tmp_path: Path, text: str, value: object) -> None:
    found: Any = load(tmp_path, TEACHER, STUDENT, text)
    for step in text.partition("=")[0].split("."):
        found = getattr(found, step)
    assert found == value
    assert type(found) is type(value)


def test_a_later_override_wins_and_leaves_its_neighbours(tmp_path: Path) -> None:
    student = {**STUDENT, "training": {"steps": 5, "batch": 3}}
    found = load(tmp_path, TEACHER, student, "student.training.steps=6", "student.training.steps=7")
    assert (found.student.training.steps, found.student.training.batch) == (7, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.steps=3", "training.steps=3: expected teacher.KEY=VALUE or student.KEY=VALUE"),
        ("student.training.steps", "expected teacher.KEY=VALUE or student.KEY=VALUE"),
        ("student=3", "expected teacher.KEY=VALUE or student.KEY=VALUE"),
        ("student.kind.deep=3", "'kind' holds a value, not a group of keys"),
        ("student.training.steps=[", "the value is not YAML"),
        ("student.training.step=3", "student.yaml: unknown key 'training.step'; did you mean 'training.steps'?"),
        ("student.training.steps=0", "student.yaml: training.steps: "),
        ("student.training.lr=.inf", "student.yaml: training.lr: "),
        ("student.loss.slice=.nan", "student.yaml: loss.slice: "),
        ("teacher.loss.affinity=.inf", "teacher.yaml: loss.affinity: "),
    ],
)
def test_bad_overrides(tmp_path: Path, text: str, message: str) -> None:
    student = {**STUDENT, "kind": "cad"}
    assert message in refusal(tmp_path, TEACHER, student, text)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"filter": [8] * 5}, {}, "teacher.yaml: unknown key 'filter'; did you mean 'filters'?"),
        ({"decoder": {"seed": {}}}, {}, "teacher.yaml: unknown key 'decoder.seed'; did you mean 'decoder.seeds'?"),
        ({"decoder": {"seeds": {"treshold": 1}}}, {}, "did you mean 'decoder.seeds.thresholds'?"),
        ({}, {"trainning": {}}, "student.yaml: unknown key 'trainning'; did you mean 'training'?"),
        ({}, {"steps": 3}, "student.yaml: unknown key 'steps'; did you mean 'training.steps'?"),
        ({}, {"zzzzzz": 1}, "student.yaml: unknown key 'zzzzzz'; expected one of ['augment', 'data',"),
        ({}, {7: 1}, "student.yaml: unknown key '7'"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, teacher: Any, student: Any, message: str) -> None:
    assert message in refusal(tmp_path, {**TEACHER, **teacher}, {**STUDENT, **student})


@pytest.mark.parametrize(
    ("teacher", "student", "parts"),
    [
        ({"embedding": -1}, {}, ["teacher.yaml: embedding: ", "found -1"]),
        ({"filters": [8, 8]}, {}, ["teacher.yaml: filters"]),
        ({"filters": [8, 8, 8, 8, 12]}, {}, ["teacher.yaml: filters: found [8, 8, 8, 8, 12], expected multiples of 8"]),
        ({"decoder": {"width": 12}}, {}, ["teacher.yaml: decoder.width: ", "multiple of 8", "found 12"]),
        ({"decoder": {"seeds": {"kind": "best"}}}, {}, ["decoder.seeds.kind: ", "'mean' or 'edges'", "found 'best'"]),
        ({"decoder": {"block": [1, 64, 64]}}, {}, ["teacher.yaml: decoder: block: found [1, 64, 64]"]),
        ({"decoder": {"overlap": [17, 1, 1]}}, {}, ["teacher.yaml: decoder: overlap: found [17, 1, 1]"]),
        ({"embedding": 0}, {}, ["student.loss.graft: compares embeddings, but teacher.embedding is 0"]),
        ({"embedding": 0, "loss": {"multi_offset": 1}}, {}, ["teacher.yaml: loss.multi_offset: needs an embedding"]),
        ({}, {"training": {"lr": 0}}, ["student.yaml: training.lr: ", "greater than 0", "found 0"]),
        ({}, {"training": {"steps": "many"}}, ["student.yaml: training.steps: ", "found 'many'"]),
        ({}, {"training": None}, ["student.yaml: training: "]),
        ({}, {"augment": {"grey": 1.5}}, ["student.yaml: augment.grey: ", "found 1.5"]),
        ({}, {"data": {**DATA, "train": [4, 4]}}, ["student.yaml: data: train: found [4, 4]"]),
        ({}, {"data": {k: v for k, v in DATA.items() if k != "labels"}}, ["student.yaml: data: labels: missing"]),
        ({}, {"data": None}, ["student.yaml: data: "]),
        ({}, {"embedding": 8}, ["student.loss.graft: ", "teacher.embedding is 16", "student.embedding 8"]),
    ],
)
def test_bad_values_name_file_and_key(tmp_path: Path, teacher: Any, student: Any, parts: list[str]) -> None:
    message = refusal(tmp_path, {**TEACHER, **teacher}, {**STUDENT, **student})
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("validation", [[0, 8], [7, 9], [2, 3], [0, 20], [6, 7]])
def test_validation_must_not_see_training_sections(tmp_path: Path, validation: list[int]) -> None:
    student = {"data": {**DATA, "train": [2, 8], "validation": validation}}
    message = refusal(tmp_path, TEACHER, student)
    assert f"student.yaml: data: validation: {validation} overlaps train [2, 8]" in message


@pytest.mark.parametrize("validation", [[0, 2], [8, 9]])
def test_validation_may_touch_training(tmp_path: Path, validation: list[int]) -> None:
    student = {"data": {**DATA, "train": [2, 8], "validation": validation}}
    assert load(tmp_path, TEACHER, student).student.data.validation == tuple(validation)


def test_terms_that_need_what_is_not_there(tmp_path: Path) -> None:
    plain = {"embedding": 0, "loss": {"multi_offset": 0}}
    without_graft = {**STUDENT, "loss": {"graft": 0}}
    assert "student.loss.cross_from: 'embedding' needs teacher.embedding" in refusal(tmp_path, plain, without_graft)
    assert load(tmp_path, plain, {**STUDENT, "loss": {"graft": 0, "cross_from": "logits"}})


NO_LOSS = {"slice": 0, "cross": 0, "graft": 0}
NO_OWN = {"multi_offset": 0, "affinity": 0}
WEIGHTS = {"weights": "run", "frozen": True}
AT_ONCE = {"warmup": 0}


def test_a_frozen_teacher_needs_weights(tmp_path: Path) -> None:
    assert "frozen: true without weights" in refusal(tmp_path, {**TEACHER, "frozen": True}, STUDENT)
    assert load(tmp_path, {**TEACHER, "weights": "run"}, STUDENT).teacher_losses
    found = load(tmp_path, {**TEACHER, **WEIGHTS}, STUDENT)
    assert not found.teacher_losses
    assert found.teacher_learns  # the decoder on its features
    published = {**WEIGHTS, "embedding": 0}  # no head, and none needed: the loss of the embedding is not computed
    assert load(tmp_path, published, {**STUDENT, "loss": {"graft": 0, "cross_from": "logits"}})


@pytest.mark.parametrize(
    ("teacher", "loss", "training", "learns"),
    [
        ({}, NO_LOSS, {}, True),
        ({"queries": {"student": 0}}, NO_LOSS, {}, True),
        ({"loss": NO_OWN, "queries": {"student": 0}}, NO_LOSS, {}, True),
        (WEIGHTS, {"slice": 0}, AT_ONCE, True),
        ({**WEIGHTS, "queries": {"teacher": 0, "student": 0}}, {"slice": 0}, AT_ONCE, False),
        ({**WEIGHTS, "queries": {"teacher": 0, "start": 5}}, {"slice": 0}, AT_ONCE, False),
    ],
)
def test_no_slice_loss_where_others_train(
    tmp_path: Path, teacher: dict[str, Any], loss: dict[str, Any], training: dict[str, Any], learns: bool
) -> None:
    found = load(tmp_path, {**TEACHER, **teacher}, {**STUDENT, "loss": loss, "training": training})
    assert found.teacher_learns is learns


@pytest.mark.parametrize(
    ("teacher", "loss", "training", "said"),
    [
        ({"loss": NO_OWN, "queries": {"student": 0, "teacher": 0}}, NO_LOSS, {}, "every loss is 0"),
        ({**WEIGHTS, "queries": {"student": 0, "teacher": 0}}, NO_LOSS, {}, "every loss is 0"),
        ({**WEIGHTS, "queries": {"start": 5}}, {"slice": 0}, {"warmup": 3}, "leaves steps without any loss"),
        ({**WEIGHTS, "queries": {"every": 2}}, NO_LOSS, AT_ONCE, "leaves steps without any loss"),
        ({"loss": NO_OWN, "queries": {"start": 5}}, NO_LOSS, {}, "leaves steps without any loss"),
        ({}, {"slice": 0}, {"teacher_every": 2, "warmup": 9}, None),  # the student's queries are there at every step
        ({"queries": {"student": 0}}, {"slice": 0}, {"teacher_every": 2}, "leaves steps without any loss"),
        ({**WEIGHTS, "queries": {"every": 2}}, {**NO_LOSS, "masks": 1}, AT_ONCE, "leaves steps without any loss"),
        ({**WEIGHTS, "queries": {"student": 0}}, {**NO_LOSS, "masks": 1}, AT_ONCE, None),
        ({"queries": {"cross_entropy": 0, "dice": 0}}, {"masks": 1}, {}, "student.loss.masks: multiplies"),
    ],
)
def test_every_step_needs_a_loss(
    tmp_path: Path, teacher: dict[str, Any], loss: dict[str, Any], training: dict[str, Any], said: str | None
) -> None:
    student = {**STUDENT, "loss": loss, "training": training}
    if said is None:
        assert load(tmp_path, {**TEACHER, **teacher}, student)
    else:
        assert said in refusal(tmp_path, {**TEACHER, **teacher}, student)


def test_environment_variables_fill_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/data")
    monkeypatch.delenv("OTHER_FOLDER", raising=False)
    data = {**DATA, "raw": "${SOME_FOLDER:-x}/${OTHER_FOLDER:-here}/a.h5:raw", "labels": "${OTHER_FOLDER:-}b.h5:$x"}
    found = load(tmp_path, TEACHER, {"data": data}).student.data
    assert found.raw == "/data/here/a.h5:raw"
    assert found.labels == "b.h5:$x"
    data["raw"] = "${OTHER_FOLDER}/a.h5"
    assert "the environment variable OTHER_FOLDER is not set" in refusal(tmp_path, TEACHER, {"data": data})
    monkeypatch.setenv("OTHER_FOLDER", "")
    assert load(tmp_path, TEACHER, {"data": data}).student.data.raw == "/a.h5"


def test_variables_in_overrides_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAST", "9")
    found = load(tmp_path, TEACHER, STUDENT, "student.data.validation=[8, '${LAST}']")
    assert found.student.data.validation == (8, 9)


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    texts = ["student.training.lr=1e-5", "student.data.resolution=[30, 6, 5.5]", "teacher.decoder.fill=true"]
    found = load(tmp_path, TEACHER, STUDENT, *texts)
    again = load(tmp_path, dump(found.teacher), dump(found.student))
    assert again == found
    assert dump(again.student) == dump(found.student)
    assert StudentConfig.model_validate(yaml.safe_load(dump(found.student))) == found.student
    assert TeacherConfig.model_validate(yaml.safe_load(dump(found.teacher))) == found.teacher


@pytest.mark.parametrize("name", PAIRS)
def test_the_pairs_that_come_along_survive_a_dump(tmp_path: Path, name: str) -> None:
    found = load_pair(CONFIGS / name / "teacher.yaml", CONFIGS / name / "student.yaml")
    assert load(tmp_path, dump(found.teacher), dump(found.student)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "teacher.yaml: found a list, expected a mapping of keys"),
        ("word", "teacher.yaml: found text, expected a mapping of keys"),
        ("a: [1\nb: 2", "teacher.yaml: cannot be read: not valid YAML: "),
        ("a: !!python/object:os.system {}", "teacher.yaml: cannot be read: not valid YAML: "),
        ("kind: agq\nembedding: 16\nkind: pea", "not valid YAML: found key 'kind' twice"),
        ("embedding: 16\nloss: {affinity: 1, affinity: 2}", "not valid YAML: found key 'affinity' twice"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_pair(tmp_path / "none.yaml", tmp_path / "student.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pair(tmp_path, tmp_path / "student.yaml")
    (tmp_path / "teacher.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"teacher\.yaml: cannot be read"):
        load_pair(tmp_path / "teacher.yaml", tmp_path / "student.yaml")


def test_an_empty_teacher_is_the_default_one(tmp_path: Path) -> None:
    assert TeacherConfig().loss.multi_offset == 0
    assert "loss.multi_offset: needs an embedding head" in refusal(tmp_path, "loss: {multi_offset: 1}")
    assert load(tmp_path, "", STUDENT, "teacher.embedding=16").teacher == TeacherConfig(embedding=16)


def test_a_configuration_does_not_change(tmp_path: Path) -> None:
    found = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        found.student.training.steps = 3  # type: ignore[misc]


def test_the_students_kind_decides_its_width_and_its_keys(tmp_path: Path) -> None:
    found = load(tmp_path).student
    assert (found.kind, found.width, found.embedding) == ("smp", 8, 16)
    assert (found.encoder, found.depth, found.fuse, found.encoder_weights) == ("tu-resnet10t", 4, 1, None)
    paper = load(tmp_path, TEACHER, STUDENT, "student.kind=cad")
    assert (paper.student.kind, paper.student.width) == ("cad", 16)
    written = dump(paper.student)
    assert "encoder" not in written
    assert load(tmp_path, TEACHER, written) == paper
    for text in ("encoder=resnet18", "depth=4", "fuse=1", "encoder_weights=imagenet"):
        message = refusal(tmp_path, TEACHER, STUDENT, "student.kind=cad", f"student.{text}")
        assert f"{text.partition('=')[0]}: set for kind 'cad', expected only with kind 'smp'" in message
    assert "fuse: found 3, expected at most depth - 1 = 2" in refusal(
        tmp_path, TEACHER, STUDENT, "student.depth=3", "student.fuse=3"
    )


def test_the_students_network_survives_a_dump(tmp_path: Path) -> None:
    words = ("kind=smp", "encoder=mit_b0", "depth=5", "fuse=0", "width=8", "encoder_weights=imagenet")
    found = load(tmp_path, TEACHER, STUDENT, *(f"student.{word}" for word in words))
    network = found.student
    assert (network.kind, network.encoder, network.depth, network.fuse) == ("smp", "mit_b0", 5, 0)
    assert (network.width, network.encoder_weights) == (8, "imagenet")
    assert load(tmp_path, TEACHER, dump(network)) == found
    assert "encoder_weights" not in StudentNetwork.model_fields  # a trained network has its own


@pytest.mark.parametrize(
    ("student", "parts"),
    [
        ({"kind": "unet"}, ["student.yaml: kind: ", "'cad' or 'smp'", "found 'unet'"]),
        ({"depth": 2}, ["student.yaml: depth: ", "greater than or equal to 3", "found 2"]),
        ({"depth": 6}, ["student.yaml: depth: ", "less than or equal to 5", "found 6"]),
        ({"fuse": -1}, ["student.yaml: fuse: ", "found -1"]),
        ({"width": 0}, ["student.yaml: width: ", "found 0"]),
        ({"embedding": 0}, ["student.yaml: embedding: ", "found 0"]),
        ({"encoder": None}, ["student.yaml: encoder: "]),
        ({"encoders": "resnet18"}, ["student.yaml: unknown key 'encoders'; did you mean 'encoder'?"]),
        ({"fused": 2}, ["student.yaml: unknown key 'fused'; did you mean 'fuse'?"]),
    ],
)
def test_bad_networks_name_file_and_key(tmp_path: Path, student: Any, parts: list[str]) -> None:
    message = refusal(tmp_path, TEACHER, {**STUDENT, **student})
    assert all(part in message for part in parts), message


def test_test_sections_are_nobody_elses(tmp_path: Path) -> None:
    assert load(tmp_path, TEACHER, {"data": {**DATA, "test": [10, 12]}}).student.data.test == (10, 12)
    for span, said in (
        ([7, 9], "test: [7, 9] overlaps train [0, 8]"),
        ([9, 12], "test: [9, 12] overlaps validation [8, 10]"),
        ([12, 12], "test: found [12, 12], expected 0 <= first < last section"),
    ):
        assert said in refusal(tmp_path, TEACHER, {"data": {**DATA, "test": span}})


def unlabelled(*volumes: dict[str, Any], loss: dict[str, Any] | None = None, **training: int) -> dict[str, Any]:
    data = {**DATA, "test": [12, 14], "unlabelled": list(volumes)}
    return {"data": data, "loss": loss or {}, "training": {"warmup": 0, **training}}


def test_unlabelled_volumes(tmp_path: Path) -> None:
    found = load(tmp_path, TEACHER, unlabelled({"raw": "b.h5"}, {"raw": DATA["raw"], "sections": [10, 12]}))
    assert [volume.sections for volume in found.student.data.unlabelled] == [None, (10, 12)]
    for volume, said in (
        ({"raw": "b.h5", "sections": [3, 3]}, "sections: found [3, 3], expected 0 <= first < last section"),
        ({"raw": DATA["raw"]}, "sections: all of the same raw overlap"),
        ({"raw": DATA["raw"], "sections": [4, 9]}, "sections: [4, 9] of the same raw overlap validation [8, 10]"),
        ({"raw": DATA["raw"], "sections": [13, 20]}, "sections: [13, 20] of the same raw overlap test [12, 14]"),
        ({"raw": DATA["raw"], "sections": [0, 4], "every": 2}, "every: found 2, expected 1 as of the same raw"),
    ):
        assert said in refusal(tmp_path, TEACHER, unlabelled(volume))
    other = {"raw": "b.h5"}
    for loss in ({"cross": 0}, {"cross": 0, "graft": 0}):
        assert "no loss at every step without labels" in refusal(tmp_path, TEACHER, unlabelled(other, loss=loss))
    for loss in ({"cross": 0, "graft_from": "teacher"}, {"cross": 0, "graft": 0, "masks": 1}):
        assert load(tmp_path, TEACHER, unlabelled(other, loss=loss))
    seldom = {**TEACHER, "queries": {"every": 2}}
    assert "no loss at every step" in refusal(tmp_path, seldom, unlabelled(other, loss={"cross": 0, "masks": 1}))


@pytest.mark.parametrize(("every", "warmup"), [(2, 0), (2, 5), (3, 0), (3, 4), (5, 10)])
def test_steps_with_and_without_labels_are_counted(tmp_path: Path, every: int, warmup: int) -> None:
    found = load(tmp_path, TEACHER, unlabelled({"raw": "b.h5"}, unlabelled_every=every, warmup=warmup))
    without = [found.unlabelled_at(step) for step in range(60)]
    assert without == [step >= warmup and step % every == every - 1 for step in range(60)]
    assert [found.labelled_before(step) for step in range(60)] == [without[:step].count(False) for step in range(60)]
    plain = load(tmp_path, TEACHER, STUDENT)
    assert not any(plain.unlabelled_at(step) for step in range(60))
    assert plain.labelled_before(41) == 41
