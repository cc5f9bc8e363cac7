"""Fine-tuning: what is taken from the model, which sections are set aside, what is refused, and that it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.config import DecoderConfig, TeacherConfig
from distill.core.errors import DistillError
from distill.io.volume import open_grey
from distill.io.writers.cremi import write_cremi
from distill.models.build import build_decoder, build_teacher
from distill.models.checkpoint import read_weights, save_weights
from distill.models.load import find_weights, load_teacher, pick_device, teacher_metadata, weights_normalisation
from distill.training.finetune import FEWEST, SectionSplit, crop_of, plan_finetune, split_sections
from distill.training.objective.objective import Joint

Cli = Callable[..., Any]
RAW, LABELS = "volumes/raw", "volumes/labels/neuron_ids"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Twelve sections, of which 2 to 9 are labelled."""
    path = tmp_path_factory.mktemp("finetune") / "v.h5"
    raw = np.random.default_rng(0).integers(0, 255, (12, 48, 64), dtype=np.uint8)
    labels = np.zeros(raw.shape, np.uint64)
    labels[2:10] = 1 + np.arange(64) // 16
    write_cremi(path, raw=raw, labels=labels, resolution=(30, 6, 6))
    return f"{path}:{RAW}", f"{path}:{LABELS}"


@given(st.integers(0, 20), st.integers(2, 40))
def test_sections_set_aside_by_default_are_the_last_and_no_others(first: int, count: int) -> None:
    used = (first, first + count)
    found = split_sections(used)
    if count < FEWEST:
        assert found == SectionSplit(used, used)
        assert not found.held_out
        return
    assert found.held_out
    assert [*range(*found.train), *range(*found.validation)] == list(range(*used))
    assert len(range(*found.train)) >= 2
    assert len(range(*found.validation)) == max(2, count // 5)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_sections_asked_for_are_never_trained_on(first: int, count: int, begin: int, aside: int) -> None:
    used, validation = (first, first + count), (begin, begin + aside)
    left = sorted(set(range(*used)) - set(range(*validation)))
    gap = any(b - a > 1 for a, b in itertools.pairwise(left))
    if count < 2 or aside < 2 or len(left) < 2 or gap:
        with pytest.raises(DistillError, match="expected"):
            split_sections(used, validation)
    else:
        found = split_sections(used, validation)
        assert found.validation == validation
        assert list(range(*found.train)) == left


@given(st.tuples(st.integers(2, 30), st.integers(8, 400), st.integers(8, 400)))
def test_crops_fit_and_are_as_large_as_may_be(shape: tuple[int, int, int]) -> None:
    crop = crop_of(shape)
    for side, size, most in zip(crop, shape, (6, 160, 160), strict=True):
        assert side <= min(size, most)
        assert side > min(size, most) - 16
    assert all(side % 16 == 0 or side < 16 for side in crop[1:])


def test_network_decoder_and_sections_come_from_model_and_labels(files: tuple[str, str]) -> None:
    found = plan_finetune("ac4", *files)
    weights = read_weights(find_weights("ac4", "student"))
    student, teacher = found.config.student, found.config.teacher
    for key in ("kind", "width", "embedding", "encoder", "depth", "fuse"):
        assert getattr(student, key) == weights.config[key]
    assert teacher.decoder == DecoderConfig.model_validate(weights.config["decoder"])
    assert teacher.fused == weights.config["fused"]
    assert student.weights == "ac4"
    assert student.training.minutes == 10
    assert found.config.student_runs
    assert not found.config.teacher_runs
    assert (student.data.train, student.data.validation) == ((2, 8), (8, 10))
    assert student.training.crop == (6, 48, 64)
    said = "\n".join(found.plan)
    assert "trains on sections 2:8, validates on 8:10" in said
    assert "the student alone, without a teacher" in said
    assert "normalisation of grey values: " in said
    assert "Normaliser(" not in said
    assert "as the model's" in said


def test_too_few_sections_are_trained_on_to_the_end_and_it_is_printed(files: tuple[str, str]) -> None:
    found = plan_finetune("ac4", *files, sections=(4, 7))
    data, training = found.config.student.data, found.config.student.training
    assert data.train == data.validation == (4, 7)
    assert (training.patience, training.validations) == (0, 1)
    assert any("too few to set any aside" in line for line in found.plan)


def test_overrides_go_first(files: tuple[str, str]) -> None:
    words = ["student.training.lr=0.01", "student.data.train=[3,9]", "student.data.every=1", "student.weights=null"]
    found = plan_finetune("ac4", *files, overrides=words)
    assert found.config.student.training.lr == 0.01
    assert (found.config.student.data.train, found.config.student.data.validation) == ((3, 7), (7, 9))
    assert found.plan[0] == "network of ac4, random weights"


@pytest.mark.parametrize(
    ("minutes", "words", "wanted"),
    [
        (None, [], (1000, 10, 50)),
        (3, [], (1000, 3, 50)),
        (None, ["steps=40"], (40, None, 2)),
        (None, ["steps=40", "lr_warmup=7"], (40, None, 7)),
        (None, ["steps=40", "minutes=2"], (40, 2, 2)),  # the time decides; the warm-up is 2 in 40
        (3, ["minutes=2"], (1000, 2, 50)),
        (None, ["minutes=null"], (1000, None, 50)),
        (None, ["steps=1"], (1, None, 0)),
    ],
)
def test_steps_replace_minutes(
    files: tuple[str, str], minutes: float | None, words: list[str], wanted: tuple[int, float | None, int]
) -> None:
    overrides = [f"student.training.{word}" for word in words]
    training = plan_finetune("ac4", *files, minutes=minutes, overrides=overrides).config.student.training
    assert (training.steps, training.minutes, training.lr_warmup) == wanted


def test_a_named_teacher_is_frozen_and_teaches(files: tuple[str, str]) -> None:
    found = plan_finetune("ac4", *files, teacher="ac4")
    assert found.config.teacher.frozen
    assert found.config.distils
    teacher = load_teacher("ac4", pick_device("cpu")).config
    assert (found.config.teacher.kind, found.config.teacher.filters) == (teacher.kind, teacher.filters)
    assert any("with the frozen teacher ac4" in line for line in found.plan)


@pytest.mark.parametrize(
    ("values", "graft"),
    [
        ({"kind": "superhuman", "filters": [4] * 5}, 1.0),
        ({"kind": "mala", "filters": [4] * 4}, 1.0),
        ({"kind": "mala", "filters": [4] * 4, "embedding": 0, "loss": {"multi_offset": 0.0}}, 0.0),
        ({"kind": "ml-de", "filters": [4] * 5}, 0.0),
    ],
)
def test_only_embeddings_trained_by_cosines_are_grafted(
    files: tuple[str, str], tmp_path: Path, values: dict[str, Any], graft: float
) -> None:
    decoding = load_teacher("ac4", pick_device("cpu")).config.decoder.model_dump()
    config = TeacherConfig.model_validate({**values, "fused": 32, "decoder": decoding})
    modules = {"teacher": build_teacher(config), "decoder": build_decoder(config.decoder, 32, (30.0, 6.0, 6.0))}
    path, normalisation = tmp_path / "teacher.safetensors", weights_normalisation("ac4", "student")
    save_weights(
        path, "teacher", modules, teacher_metadata(config, config.decoder, (30.0, 6.0, 6.0), normalisation), {}
    )
    found = plan_finetune("ac4", *files, teacher=str(path)).config
    assert found.teacher.kind == values["kind"]
    assert (found.student.loss.cross, found.student.loss.graft) == (1.0, graft)


def test_other_voxels_are_said(files: tuple[str, str]) -> None:
    found = plan_finetune("ac4", *files, overrides=["student.data.every=2"])
    assert any("voxels: 60 x 6 x 6 nm, the model was trained on 30 x 6 x 6 nm" in line for line in found.plan)


def test_smaller_labels_crop_the_sections(files: tuple[str, str], tmp_path: Path) -> None:
    """Labels of sections 8 to 15, of which the image has 8 to 11, without the first 16 columns."""
    path = tmp_path / "part.h5"
    write_cremi(path, labels=np.ones((8, 48, 48), np.uint64), resolution=(30, 6, 6), offset=(240, 0, 96))
    data = plan_finetune("ac4", files[0], f"{path}:{LABELS}").config.student.data
    assert (str(data.raw), str(data.labels)) == (
        f"{files[0]}#box=8,0,16:12,48,64",
        f"{path}:{LABELS}#box=0,0,0:4,48,48",
    )
    np.testing.assert_array_equal(open_grey(str(data.raw)).read(), open_grey(files[0]).read()[8:, :, 16:])


def test_nonsense_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    raw, labels = files

    def refused(*parts: str, labels: str = labels, **words: Any) -> None:
        with pytest.raises(DistillError) as error:
            plan_finetune(words.pop("model", "ac4"), raw, labels, **words)
        assert all(part in str(error.value) for part in parts), str(error.value)

    def other(name: str, size: tuple[int, int, int], **place: Any) -> str:
        write_cremi(tmp_path / name, labels=np.ones(size, np.uint64), **{"resolution": (30, 6, 6), **place})
        return f"{tmp_path / name}:{LABELS}"

    steps = "student.training.steps"
    refused(f"--minutes: found 2 and {steps}=9, expected one", minutes=2, overrides=[f"{steps}=9"])
    refused(f"{steps.removeprefix('student.')}: ", "0", overrides=[f"{steps}=0"])
    refused("training.steps: ", "many", overrides=[f"{steps}=many"])
    refused("1 labelled section (4:5)", "at least 2", sections=(4, 5))
    refused("--sections: found 0:13", "within 0:12", sections=(0, 13))
    refused("holds no label in sections 0, 1 of 0:6", sections=(0, 8))
    refused("lies in the middle of the sections 2:10", validation=(4, 6))
    refused("leaves 1 of the sections", validation=(3, 10))
    write_cremi(tmp_path / "empty.h5", labels=np.zeros((12, 48, 64), np.uint64), resolution=(30, 6, 6))
    refused("found no label other than 0", labels=f"{tmp_path / 'empty.h5'}:{LABELS}")
    away = other("size.h5", (4, 48, 64), offset=(360, 0, 0))
    refused("has size (4, 48, 64) and covers nothing of", labels=away)
    refused("found resolution (30.0, 5.0, 6.0)", labels=other("nm.h5", (12, 48, 64), resolution=(30, 5, 6)))
    refused("does not overlap", labels=other("far.h5", (12, 48, 64), offset=(0, 6000, 0)))
    refused("no such file or run folder", model="ac5")
    refused("unknown key 'training.learning_rate'", overrides=["student.training.learning_rate=1"])
    refused("expected --teacher MODEL", overrides=["teacher.loss.affinity=1"])


@pytest.mark.commands("finetune")
def test_the_command_prints_the_plan_and_trains_it(
    cli: Cli, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = tmp_path / "run", []
    monkeypatch.setattr("distill.training.train.train", lambda config, out, **words: seen.append((config, out, words)))
    words = ["--out", run, "--sections", "2:6", "--validation", "6:8", "--device", "cpu", "student.training.lr=1e-3"]
    said = cli("finetune", "ac4", *files, *words)
    assert said.code == 0, said.err
    ((config, out, others),) = seen
    assert out == run
    assert (others["resume"], others["device"]) == (False, "cpu")
    assert (config.student.data.train, config.student.data.validation) == ((2, 6), (6, 8))
    assert config.student.training.lr == 1e-3
    assert "trains on sections 2:6, validates on 6:8" in said.out
    assert said.out.splitlines()[-1] == f"next: distill stream {files[0]} --model {run} --out {run}/sections.zarr"
    said = cli("finetune", "ac4", *files, "--out", run, "--sections", "4")
    assert (said.code, said.out) == (2, "")
    assert "--sections: found '4', expected FIRST:LAST" in said.err


def test_two_sections_make_a_step_and_the_model_moves(files: tuple[str, str]) -> None:
    config = plan_finetune("ac4", *files, sections=(2, 4), overrides=["student.training.crop=[2,32,32]"]).config
    joint = Joint(config, (30.0, 6.0, 6.0)).train()
    assert joint.teacher is None
    assert joint.not_started == []  # decoder and adapter start as the model's, too
    labels = torch.ones(1, 2, 32, 32, dtype=torch.int64)
    labels[..., 16:] = 2
    terms = joint((torch.rand(1, 1, 2, 32, 32), labels), 0)
    assert {"slice", "student_cross_entropy", "student_dice"} <= set(terms)
    torch.stack(list(terms.values())).sum().backward()
    assert joint.student is not None
    assert sum(float(p.grad.abs().sum()) for p in joint.student.parameters() if p.grad is not None) > 0
