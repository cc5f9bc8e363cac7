"""Training of the fragment transformer: targets, loss, choice of the threshold, file, command, and segmentation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import ndimage

import distill
from distill.core.errors import CheckpointError, DistillError
from distill.evaluation.metrics import score
from distill.inference.fragments import contact_scores, segment_fragments
from distill.io.volume import open_volume
from distill.models.fragment_file import (
    FragmentArchitecture,
    FragmentModel,
    check_model,
    load_fragments,
    save_fragments,
)
from distill.segmentation.agglomeration import fragments
from distill.training.fragments import (
    FragmentTraining,
    LabelledFragments,
    choose_threshold,
    class_weights,
    fit,
    label_fragments,
    majority,
    merge_loss,
)

CPU = torch.device("cpu")
SMALL = FragmentArchitecture(neighbours=2, width=8, layers=2, heads=2)
SHORT = FragmentTraining(steps=60, batch=64, lr=0.01, validations=3)
LABELS = "volumes/labels/neuron_ids"
PARTS = ("--box", "0,0,0:8,96,96", "--validation", "10,0,0:16,96,96")


def neurites(seed: int, shape: tuple[int, int, int] = (6, 64, 64)) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Straight neurites around random centres, and blurred, noisy affinities of their borders."""
    rng = np.random.default_rng(seed)
    centres = rng.random((12, 2)) * shape[1:]
    places = np.stack(np.meshgrid(*map(np.arange, shape[1:]), indexing="ij"), -1)
    section = np.argmin(((places[:, :, None] - centres) ** 2).sum(-1), -1) + 1
    labels = np.broadcast_to(section, shape).astype(np.uint64)
    affinity = np.ones((3, *shape), np.float32)
    for axis in (1, 2):
        differ = np.diff(labels, axis=axis) != 0
        affinity[axis][tuple(slice(1, None) if k == axis else slice(None) for k in range(3))] = ~differ
    affinity[1:] = ndimage.gaussian_filter(ndimage.minimum_filter(affinity[1:], (1, 1, 4, 4)), (0, 0, 1, 1))
    affinity += rng.normal(0, 0.08, affinity.shape).astype(np.float32)
    return labels, np.clip(affinity, 0, 1)


def part(seed: int) -> LabelledFragments:
    labels, affinity = neurites(seed)
    return label_fragments(fragments(affinity), affinity, labels, SMALL.neighbours)


@pytest.fixture(scope="module")
def trained() -> FragmentModel:
    network, chosen, _ = fit(part(0), part(1), SMALL, SHORT)
    return FragmentModel(network, SMALL, chosen.threshold, "aa", {"model": "m.safetensors"})


def test_a_fragment_belongs_to_the_label_of_most_voxels() -> None:
    pieces = np.array([[1, 1, 1, 2, 2, 3, 3, 9]])
    labels = np.array([[5, 5, 0, 0, 7, 0, 0, 4]])
    ids = np.array([9, 2, 1, 3], np.uint64)
    assert majority(pieces, labels, ids).tolist() == [4, 0, 5, 0]  # of two equal ones the lower


def test_targets_of_contacts() -> None:
    labels, affinity = neurites(3)
    labels = labels.copy()
    labels[labels == 4] = 0
    pieces = fragments(affinity)
    found = label_fragments(pieces, affinity, labels, 2)
    known = set(found.known.tolist())
    for at, (u, v) in enumerate(zip(found.graph.u, found.graph.v, strict=True)):
        ends = [np.bincount(labels[pieces == found.graph.ids[end]].astype(int)).argmax() for end in (u, v)]
        assert (at in known) == (0 not in ends)
        if at in known:
            assert found.same[at] == (ends[0] == ends[1])
    assert 0 < len(known) < len(found.same)
    apart, merged = class_weights(found)
    share = found.same[found.known].mean()
    assert (1 - share) * apart == pytest.approx(share * merged) == pytest.approx(0.5)


def test_training_lowers_the_loss_and_segments(trained: FragmentModel) -> None:
    train = part(0)
    torch.manual_seed(SHORT.seed)
    before = SMALL.build()
    before.standard_fragment.fix(torch.from_numpy(train.graph.fragments))
    before.standard_contact.fix(torch.from_numpy(train.graph.contacts))
    losses = [
        float(merge_loss(network, train, train.known, class_weights(train)).detach())
        for network in (before, trained.network)
    ]
    assert losses[1] < 0.3 * losses[0]
    labels, affinity = neurites(2)
    found = segment_fragments(affinity, trained, [trained.threshold, 1.0], CPU)
    merged, cut = (score(found[threshold], labels).voi_sum for threshold in (trained.threshold, 1.0))
    assert merged < 0.5 * cut
    np.testing.assert_array_equal(np.unique(found[1.0]), np.arange(1, fragments(affinity).max() + 1))


def test_the_seed_decides(trained: FragmentModel) -> None:
    again, _, _ = fit(part(0), part(1), SMALL, SHORT)
    other, _, _ = fit(part(0), part(1), SMALL, replace(SHORT, seed=1))
    for (name, one), two in zip(trained.network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(other.score.weight, again.score.weight)


def test_scores_do_not_depend_on_ids(trained: FragmentModel) -> None:
    labels, affinity = neurites(4)
    pieces = fragments(affinity)
    renamed = np.random.default_rng(0).permutation(int(pieces.max()) + 1).astype(np.uint64) + 5
    graphs = [label_fragments(ids, affinity, labels, SMALL.neighbours).graph for ids in (pieces, renamed[pieces])]
    one, two = (contact_scores(trained.network, graph, CPU) for graph in graphs)
    np.testing.assert_array_equal(one, two)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_the_threshold_is_the_one_of_the_segmentation(trained: FragmentModel) -> None:
    labels, affinity = neurites(1)
    chosen = choose_threshold(trained.network, part(1))
    found = segment_fragments(affinity, trained, [chosen.threshold], CPU)[chosen.threshold]
    expected = score(found, labels)
    assert chosen.scores.voi_sum == pytest.approx(expected.voi_sum, abs=1e-9)
    assert chosen.scores.arand == pytest.approx(expected.arand, abs=1e-9)
    assert chosen.threshold == trained.threshold


def test_a_file_comes_back(trained: FragmentModel, tmp_path: Path) -> None:
    path = tmp_path / "fragments.safetensors"
    save_fragments(path, trained)
    found = load_fragments(path)
    assert (found.architecture, found.threshold, found.model_sha256) == (SMALL, trained.threshold, "aa")
    assert found.notes["model"] == "m.safetensors"
    graph = part(2).graph
    np.testing.assert_array_equal(
        *(contact_scores(model.network, graph, CPU) for model in (trained, found)),
    )
    save_fragments(tmp_path / "again.safetensors", trained)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    check_model(found, "aa", "m")
    check_model(found, None, "m")
    with pytest.raises(CheckpointError, match=r"trained on affinities of m\.safetensors \(SHA-256 aa\)"):
        check_model(found, "bb", "other")


def changed(path: Path, *, config: dict[str, Any] | None = None, **metadata: str) -> None:
    """Write the file again with other metadata."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        about = dict(file.metadata())
    about |= metadata
    if config is not None:
        about["config"] = json.dumps(json.loads(about["config"]) | config)
    save_file(tensors, path, about)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"threshold": 2}}, "threshold 2, expected a number from 0 to 1"),
        ({"config": {"threshold": None}}, "threshold null"),
        ({"config": {"neighbours": "4"}}, "neighbours"),
        ({"config": {"neighbours": -1}}, "neighbours"),
        ({"config": {"width": 12}}, "of another architecture"),
        ({"config": {"width": 9}}, "multiple of heads"),
        ({"config": {"layers": 3}}, "of another architecture"),
        ({"config": {"contact_features": ["mean"]}}, "other contact_features than this version"),
        ({"config": {"model_sha256": 3}}, "model_sha256"),
        ({"notes": "[1]"}, "notes"),
        ({"notes": "{"}, "notes cannot be read"),
        ({"format": "2"}, "format"),
        ({"kind": "student"}, "holds a student, expected a file that distill fragments has written"),
    ],
)
def test_files_that_do_not_fit(trained: FragmentModel, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "fragments.safetensors"
    save_fragments(path, trained)
    changed(path, **change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_fragments(path)
    assert str(path) in str(caught.value)


def test_files_that_are_none(trained: FragmentModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_fragments(tmp_path / "none")
    path = tmp_path / "text"
    path.write_text("weights")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_fragments(path)
    broken = tmp_path / "broken.safetensors"
    network = SMALL.build()
    torch.nn.init.constant_(network.score.bias, float("nan"))
    save_fragments(broken, replace(trained, network=network))
    with pytest.raises(CheckpointError, match=r"score\.bias.*not finite"):
        load_fragments(broken)


def test_numbers_out_of_range() -> None:
    with pytest.raises(DistillError, match="steps: found 0"):
        FragmentTraining(steps=0)
    with pytest.raises(DistillError, match="width: found 10, expected a multiple of heads 4"):
        FragmentArchitecture(width=10)


@pytest.fixture(scope="module")
def stored(cli: Callable[..., Any], phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Affinities of the phantom, by the bundled model, which draws membranes there."""
    out = tmp_path_factory.mktemp("fragments") / "affinity.zarr"
    words = ("--model", "ac4", "--no-segment", "--device", "cpu", "--precision", "32-true", "--backend", "eager")
    said = cli("stream", f"{phantom}:volumes/raw", "--out", out, *words)
    assert said.code == 0, said.err
    return out


@pytest.fixture(scope="module")
def file(cli: Callable[..., Any], stored: Path, phantom: Path) -> Path:
    """A transformer that the command has trained."""
    out = stored.with_name("fragments.safetensors")
    words = ("--steps", 20, "--batch", 32, "--width", 8, "--neighbours", 2, *PARTS)
    said = cli("fragments", f"{stored}:affinity", f"{phantom}:{LABELS}", "--out", out, *words)
    assert said.code == 0, said.err
    assert "step and threshold were chosen on it" in said.out
    assert f"--method fragments --fragments {out}" in said.out
    return out


@pytest.mark.commands("fragments", "segment", "sweep")
def test_from_affinities_to_neurons(
    cli: Callable[..., Any], phantom: Path, stored: Path, file: Path, tmp_path: Path
) -> None:
    record = json.loads(file.with_name(f"{file.name}.run.json").read_text())
    model = load_fragments(file)
    assert record["threshold"] == model.threshold
    assert model.notes["trained_on"]["validation"].endswith("#box=10,0,0:16,96,96")
    said = cli("info", file)
    assert f"threshold of fragments  {model.threshold:g}" in said.out, said.err
    said = cli("stream", f"{phantom}:volumes/raw", "--model", file, "--out", tmp_path / "none.zarr")
    assert (said.code, "holds a fragments, expected a student" in said.err) == (2, True), said.err
    out = tmp_path / "swept"
    said = cli(
        *("sweep", f"{stored}:affinity", f"{phantom}:{LABELS}", "--box", "10,0,0:16,96,96", "--out", out),
        *("--methods", "flood", "--fragments", file, "--scores", f"0.3,{model.threshold},1"),
    )
    assert said.code == 0, said.err
    methods = json.loads((out / "sweep.json").read_text())["methods"]
    assert list(methods) == ["flood", "fragments"]
    swept = {row["threshold"]: row["voi"] for row in methods["fragments"]["thresholds"]}
    assert swept[model.threshold] == pytest.approx(model.notes["validation"]["voi"], abs=1e-9)
    where = ("segment", f"{phantom}:volumes/raw", "--model", "ac4", "--device", "cpu", "--precision", "32-true")
    words = (*where, "--backend", "eager", "--method", "fragments", "--fragments", file, "--block", "20,96,96")
    whole = tmp_path / "whole.zarr"
    said = cli(*words, "--out", whole)
    assert said.code == 0, said.err
    found = open_volume(f"{whole}:segmentation").read()
    loaded = distill.load("ac4", device="cpu", precision="32-true")
    expected = loaded.segment(f"{phantom}:volumes/raw", method="fragments", fragments=file)
    np.testing.assert_array_equal(found, expected.labels)
    settings = json.loads((whole / "blocks" / "job.json").read_text())
    assert (settings["fragments_sha256"], settings["threshold"]) == (model.sha256, model.threshold)
    parts = tmp_path / "parts.zarr"
    said = cli(*words[:-1], "6,96,96", "--out", parts, "--workers", 2)
    assert said.code == 0, said.err
    again = tmp_path / "again.zarr"
    assert cli(*words[:-1], "6,96,96", "--out", again).code == 0
    one, two = (open_volume(f"{store}:segmentation").read() for store in (parts, again))
    np.testing.assert_array_equal(one, two)
    assert one.min() > 0


def test_resume_takes_the_same_file_alone(cli: Callable[..., Any], phantom: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    where = (
        "segment",
        f"{phantom}:volumes/raw",
        "--model",
        "ac4",
        "--out",
        out,
        "--device",
        "cpu",
        "--method",
        "fragments",
    )
    assert cli(*where, "--fragments", file).code == 0
    moved = tmp_path / "moved.safetensors"
    shutil.copy(file, moved)
    assert cli(*where, "--fragments", moved, "--resume").code == 0
    other = load_fragments(file)
    save_fragments(moved, replace(other, notes={**other.notes, "step": 0}))
    said = cli(*where, "--fragments", moved, "--resume")
    assert (said.code, "was begun with fragments_sha256" in said.err) == (2, True), said.err
    said = cli(*where, "--resume")
    assert (said.code, "--fragments: found none" in said.err) == (2, True), said.err


def test_a_file_of_another_model_is_refused(
    cli: Callable[..., Any], phantom: Path, stored: Path, file: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_fragments(foreign, replace(load_fragments(file), model_sha256="00"))
    where = ("segment", f"{phantom}:volumes/raw", "--model", "ac4", "--out", tmp_path / "x.zarr")
    said = cli(*where, "--method", "fragments", "--fragments", foreign)
    assert (said.code, "was trained on affinities of" in said.err) == (2, True), said.err
    swept = ("sweep", f"{stored}:affinity", f"{phantom}:{LABELS}", "--out", tmp_path / "x")
    said = cli(*swept, "--fragments", foreign)
    assert (said.code, "was trained on affinities of" in said.err) == (2, True), said.err
    with pytest.raises(CheckpointError, match="was trained on affinities of"):
        distill.load("ac4").segment(f"{phantom}:volumes/raw", method="fragments", fragments=foreign)
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "flood", "--fragments", "FILE"), "found it with --method flood"),
        (("--method", "fragments"), "--fragments: found none"),
        (("--method", "fragments", "--fragments", "nothing"), "nothing: no such weights file"),
    ],
)
def test_wrong_use_of_segment(
    cli: Callable[..., Any], phantom: Path, file: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    given = [str(file) if word == "FILE" else word for word in words]
    said = cli("segment", f"{phantom}:volumes/raw", "--model", "ac4", "--out", tmp_path / "x.zarr", *given)
    assert (said.code, message in said.err) == (2, True), said.err
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--box", "0,0,0:8,96,96", "--validation", "6,0,0:16,96,96"), "found 18432 voxels of the training part"),
        (("--validation", "6,0,0:16,96,96"), "voxels of the training part"),
        (("--box", "0,0,0:8,96,96", "--validation", "8"), "--validation: found box '8'"),
        (("--box", "0,0,0:8,96,96", "--validation", "8,0,0:30,96,96"), "30"),
        ((*PARTS, "--width", "6"), "width: found 6, expected a multiple of heads 4"),
        ((*PARTS, "--steps", "0"), "steps: found 0"),
    ],
)
def test_wrong_use_of_fragments(
    cli: Callable[..., Any], stored: Path, phantom: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "x.safetensors"
    said = cli("fragments", f"{stored}:affinity", f"{phantom}:{LABELS}", "--out", out, *words)
    assert (said.code, message in said.err) == (2, True), said.err
    assert not out.exists()
    out.write_text("kept")
    said = cli("fragments", f"{stored}:affinity", f"{phantom}:{LABELS}", "--out", out, *PARTS)
    assert (said.code, out.read_text()) == (2, "kept"), said.err


def test_labels_without_two_neurons_are_refused(cli: Callable[..., Any], stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, labels=np.ones((20, 96, 96), np.uint16))
    words = (f"{path}:labels#resolution=30,6,6", "--out", tmp_path / "x.safetensors", *PARTS)
    said = cli("fragments", f"{stored}:affinity", *words)
    assert (said.code, "contacts within neurons alone" in said.err) == (2, True), said.err
