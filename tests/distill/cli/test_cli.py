"""The command line from a phantom to scores and a figure, and what it says to wrong use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import distill.cli.console
from distill.core.geometry import Triple
from distill.evaluation.contingency import PRESETS
from distill.evaluation.metrics import score
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi

REPO = Path(__file__).resolve().parents[3]
PAIR = tuple(REPO / "configs" / "phantom_cpu" / name for name in ("teacher.yaml", "student.yaml"))
TIMES = ("seconds", "waited", "validation_seconds", "parts")
Cli = Callable[..., Any]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def process(*words: object, **variables: str) -> subprocess.Popen[str]:
    """`distill WORDS` as a process of its own, leader of a group."""
    command = [sys.executable, "-c", "from distill.cli import main; main()", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, cwd=REPO, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


# ---------------------------------------------------------------- from end to end


def test_run_folder_holds_what_the_design_names(run: Path) -> None:
    for name in ("teacher.yaml", "student.yaml", "run.json", "metrics.jsonl", "checkpoints/state.pt"):
        assert (run / name).is_file(), name
    for kind in ("teacher", "student"):
        assert (run / "best" / f"{kind}.safetensors").is_file()
        assert {path.name for path in (run / "checkpoints").glob(f"{kind}-*")} == {
            f"{kind}-0000002.safetensors",
            f"{kind}-0000004.safetensors",
        }
    figures = {path.name for path in (run / "figures").iterdir()}
    drawn = {"curves.png", "validation_student.png", "validation_teacher.png", "sweep.png", "pca.png"}
    assert figures == drawn | {"seams.json"}
    assert not list(run.rglob("*.writing"))


def test_run_folder_says_what_was_run(run: Path, phantom: Path) -> None:
    student, teacher = (yaml.safe_load((run / f"{kind}.yaml").read_text()) for kind in ("student", "teacher"))
    assert student["training"]["steps"] == 4
    assert student["data"]["raw"] == f"{phantom}:volumes/raw"
    assert teacher["decoder"]["block"] == [4, 48, 48]
    assert teacher["queries"]["dice"] == 3.0  # a default, written out
    record = json.loads((run / "run.json").read_text())
    assert record["ended"] == "done"
    assert record["command"][:2] == ["distill", "train"]
    assert (record["first_step"], record["seed"], record["earlier"]) == (0, 1, [])
    assert record["versions"]["torch"] == torch.__version__


def test_metrics_have_a_row_per_step_and_validation(run: Path) -> None:
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 4
    for row in steps:
        terms = [value for name, value in row.items() if name not in ("step", "lr", "loss")]
        assert row["loss"] == pytest.approx(sum(terms), rel=1e-5)
    for row in rows:
        if "loss" not in row:
            for name in ("validation_teacher", "validation_student"):
                assert row[name]["voi"] == pytest.approx(row[name]["voi_split"] + row[name]["voi_merge"])
                assert row[name]["voi"] <= row[name]["voi_unmerged"]
                assert len(row[name]["boundary_f1_zyx"]) == 3


def test_best_is_the_lowest_validation(run: Path) -> None:
    for kind in ("teacher", "student"):
        scored = [
            (row[f"validation_{kind}"]["voi"], row["step"]) for row in metrics(run) if f"validation_{kind}" in row
        ]
        best = load_file(run / "best" / f"{kind}.safetensors")
        chosen = load_file(run / "checkpoints" / f"{kind}-{min(scored)[1]:07d}.safetensors")
        assert best.keys() == chosen.keys()
        assert all(torch.equal(best[key], chosen[key]) for key in best)


@pytest.fixture(scope="module")
def streamed(
    cli: Cli, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the next command of `distill train` leaves."""
    out = tmp_path_factory.mktemp("streamed") / "validation.zarr"
    said = cli("stream", f"{phantom}:volumes/raw", "--sections", "12:20", "--model", run, "--out", out, *cpu)
    assert said.code == 0, said.err
    assert f"distill evaluate {out}:segmentation LABELS" in said.out
    return out


@pytest.mark.commands("phantom", "train", "stream")
def test_stream_leaves_store_and_record(streamed: Path, run: Path, phantom: Path) -> None:
    affinity, found = open_volume(f"{streamed}:affinity"), open_labels(f"{streamed}:segmentation")
    assert (affinity.shape, affinity.dtype) == ((3, 8, 96, 96), np.uint8)
    assert affinity.attributes["offsets"] == [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    assert found.resolution == (30.0, 6.0, 6.0)
    assert found.offset == (360.0, 0.0, 0.0)
    labels = found.read()
    record = json.loads(streamed.with_name("validation.zarr.run.json").read_text())
    assert record["objects"] == labels.max() == len(np.unique(labels[labels > 0]))
    assert record["model"] == str(run / "best" / "student.safetensors")
    assert record["source"] == f"{phantom}:volumes/raw"
    assert record["method"] == "flood"
    assert json.loads((streamed / "zarr.json").read_text())["attributes"]["made_by"]["source"] == record["source"]


@pytest.mark.parametrize(
    "network", [pytest.param("student", marks=pytest.mark.commands("segment", "evaluate")), "teacher"]
)
@pytest.mark.parametrize("method", ["flood", "query", "waterz"])
def test_segment(
    cli: Cli, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path: Path, network: str, method: str
) -> None:
    if method == "waterz":
        pytest.importorskip("waterz")
    out = tmp_path / "out.zarr"
    words = ("--model", run, "--out", out, "--network", network, "--method", method, "--sections", "12:18")
    said = cli("segment", f"{phantom}:volumes/raw", *words, *cpu)
    assert said.code == 0, said.err
    labels = open_labels(f"{out}:segmentation").read()
    assert labels.shape == (6, 96, 96)
    record = json.loads((tmp_path / "out.zarr.run.json").read_text())
    assert (record["network"], record["method"]) == (network, method)
    assert record["objects"] == labels.max() == len(np.unique(labels[labels > 0])) > 0
    assert record["model"].endswith(f"{network}.safetensors")
    assert cli("evaluate", f"{out}:segmentation", phantom).code == 0


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_evaluate_prints_json(cli: Cli, streamed: Path, phantom: Path, preset: str) -> None:
    said = cli("evaluate", f"{streamed}:segmentation", phantom, "--preset", preset, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    truth = open_labels(phantom)
    whole = score(open_labels(f"{streamed}:segmentation").read(), truth.read()[12:20], preset, resolution=(30, 6, 6))
    assert found["preset"] == preset
    assert found["voxels"] == whole.voxels
    assert found["voi_split"] == pytest.approx(whole.voi_split)
    assert found["voi_merge"] == pytest.approx(whole.voi_merge)
    assert found["arand"] == pytest.approx(whole.arand)
    bits = [one["bits"] for one in found["worst"]["merged"]]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 0


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_evaluate_prints_text(
    cli: Cli, streamed: Path, phantom: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    said = cli("evaluate", f"{streamed}:segmentation", phantom, "--preset", preset)
    assert said.code == 0, said.err
    assert said.out.startswith(f"preset {preset}, ")
    assert "VOI    split " in said.out
    assert ("CREMI" in said.out) == (preset == "cremi")
    head, _, table = said.out.partition(
        "worst objects (split: ground-truth id in segments; merge: segment over objects)\n"
    )
    assert table, head
    assert "  merge  " in table
    assert max(map(len, table.splitlines())) == 70


def test_evaluate_says_all_it_can(
    cli: Cli, streamed: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # tables as wide as necessary
    rows = [f"{k} 0 {6.0 * k + 40} 260 {30.0 * 12 + 45} 1 {k - 1 if k else -1}" for k in range(60)]
    (tmp_path / "a.swc").write_text("\n".join(rows))
    listing, plot = tmp_path / "worst.csv", tmp_path / "scores.png"
    words = (
        "evaluate",
        f"{streamed}:segmentation",
        phantom,
        "--affinity",
        f"{streamed}:affinity",
        "--blocks",
        "4,48,48",
    )
    more = ("--blocks", "4,48,48", "--skeletons", tmp_path / "a.swc", "--worst", "2")
    said = cli(*words, *more, "--list", listing, "--plot", plot)
    assert said.code == 0, said.err
    for text in ("8 blocks of 4 x 48 x 48", "VOI split", "ERL    ", "-1, 0, 0", f"list: {listing}", f"figure: {plot}"):
        assert text in said.out
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(cli(*words, *more, "--json").out)
    assert len(listing.read_text().splitlines()) == 1 + len(found["errors"])
    assert len(found["worst"]["merged"]) <= 2
    assert found["blocks"]["n"] == 8
    assert found["run_length"]["n_skeletons"] == 1
    assert found["run_length"]["length_nm"] == pytest.approx(59 * 6)
    assert [row["offset_zyx"] for row in found["affinity"]["channels"]] == [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    once = json.loads(cli("evaluate", f"{streamed}:segmentation", phantom, "--worst", "0", "--json").out)
    assert once["errors"] == once["worst"]["split"] == once["worst"]["merged"] == []
    assert once["voi_sum"] == found["voi_sum"]
    assert (once["blocks"], once["run_length"], once["affinity"]) == (None, None, None)


def test_evaluate_of_affinities_or_skeletons_alone(cli: Cli, streamed: Path, phantom: Path, tmp_path: Path) -> None:
    said = cli("evaluate", f"{streamed}:affinity", phantom, "--labelled-only")
    assert said.code == 0, said.err
    assert said.out.startswith("affinities at 0.5, boundary and connected edges (with both ends labelled)")
    found = json.loads(cli("evaluate", f"{streamed}:affinity", phantom, "--json").out)
    assert found["affinity"]["source"] == f"{streamed}:affinity"
    assert "voi_sum" not in found
    (tmp_path / "a.swc").write_text("1 0 40 40 3 1 -1\n2 0 50 40 3 1 1\n")
    words = ("--skeletons", tmp_path / "a.swc", "--skeleton-units", "voxel", "--plot", tmp_path / "runs.svg")
    said = cli("evaluate", f"{streamed}:segmentation", *words)
    assert said.code == 0, said.err
    assert said.out.startswith("ERL    ")
    assert (tmp_path / "runs.svg").exists()


@pytest.mark.commands("pca")
def test_pca_draws_and_scores(cli: Cli, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "pca.png"
    words = ("--teacher", run, "--student", run, "--section", "15", "--window", "4,48,48", "--out", out, *cpu)
    said = cli("pca", f"{phantom}:volumes/raw", *words, "--json")
    assert said.code == 0, said.err
    assert out.read_bytes().startswith(b"\x89PNG")
    found = json.loads(said.out)
    assert found["window_zyx"] == [4, 48, 48]
    assert found["teacher"]["ratio"] > 0
    assert found["student"]["ratio"] > 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.commands("info")
def test_info_on_volume_store_and_weights(cli: Cli, run: Path, phantom: Path, streamed: Path) -> None:
    said = cli("info", phantom)
    assert said.code == 0
    assert "20 x 96 x 96" in said.out
    assert "30, 6, 6" in said.out
    said = cli("info", streamed)
    assert said.code == 0
    assert "3 x 8 x 96 x 96" in said.out
    assert "360, 0, 0" in said.out
    for kind in ("teacher", "student"):
        file = run / "best" / f"{kind}.safetensors"
        said = cli("info", file)
        assert said.code == 0
        assert said.out.splitlines()[0] == str(file)
        assert said.out.splitlines()[1].split()[:2] == ["network", f"{kind},"]
        assert json.loads(cli("info", file, "--json").out)[str(file)]["notes"]["resolution"] == [30.0, 6.0, 6.0]


# ---------------------------------------------------------------- interrupted and resumed


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], None]) -> None:
    """Do something right after a training step."""
    update = distill.cli.console.Bar.update

    def hooked(bar: Any, done: int, total: int, note: str = "", **more: Any) -> None:
        update(bar, done, total, note, **more)
        if done == step:
            how()

    monkeypatch.setattr(distill.cli.console.Bar, "update", hooked)


def same_run(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    for name in files:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    a, b = (torch.load(folder / "checkpoints" / "state.pt", weights_only=True) for folder in (one, other))
    for part in ("module", "average"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert (a["step"], a["best"]) == (b["step"], b["best"])


@pytest.mark.parametrize("step", [1, 2, 3])
def test_interrupted_run_saves_and_resumes_exactly(
    run: Path, train: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        said = train(tmp_path / "run")
    assert said.code == 130
    last = said.err.strip().splitlines()[-1]
    assert last == f"distill: stopped after step {step}; state saved in {tmp_path / 'run' / 'checkpoints' / 'state.pt'}"
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["ended"].startswith("Interrupted")
    said = train(tmp_path / "run", "--resume")
    assert said.code == 0, said.err
    same_run(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["first_step"], record["ended"], len(record["earlier"])) == (step, "done", 1)


def test_run_that_broke_resumes_from_its_last_state(
    run: Path, train: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        stop_at(patch, 3, fail)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tmp_path / "run")
    assert metrics(tmp_path / "run")[-1]["step"] == 3  # a row that the saved state does not know of
    assert train(tmp_path / "run", "--resume").code == 0
    same_run(run, tmp_path / "run")


def test_resuming_a_finished_run_changes_nothing(run: Path, train: Cli, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    kept = tree(folder / "checkpoints"), tree(folder / "best"), metrics(folder)
    said = train(folder, "--resume")
    assert said.code == 0, said.err
    assert kept == (tree(folder / "checkpoints"), tree(folder / "best"), metrics(folder))
    assert json.loads((folder / "run.json").read_text())["ended"] == "done"


def test_ctrl_c_reaches_the_whole_group(tmp_path: Path, phantom: Path, tiny: tuple[str, ...]) -> None:
    """As a terminal sends it: to the trainer and to the worker that feeds it."""
    words = ("student.training.steps=100000", "student.training.workers=1", "student.training.validate_every=100000")
    folder = tmp_path / "run"
    running = process("train", *PAIR, *tiny, *words, "--device", "cpu", "--out", folder, PHANTOM=str(phantom))
    try:
        end = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < end and running.poll() is None:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=300)
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err
    state = torch.load(folder / "checkpoints" / "state.pt", weights_only=True)
    assert state["step"] >= 1
    assert f"distill: stopped after step {state['step']}; " in err


# ---------------------------------------------------------------- wrong use


@pytest.fixture
def refuses(cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """Call that must end with 2 and one line on standard error that says all of `says`, and write nothing."""

    def check(words: tuple[object, ...], *says: object, call: Cli | None = None) -> str:
        before = tree(tmp_path)
        said = (call or cli)(*words)
        assert said.code == 2, (said.out, said.err)
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("distill: ")
        for text in says:
            assert str(text) in lines[0], (text, lines[0])
        assert tree(tmp_path) == before
        return lines[0]

    return check


Refuses = Callable[..., str]


@pytest.fixture
def stream(run: Path, cpu: tuple[str, ...], tmp_path: Path) -> Callable[..., tuple[object, ...]]:
    """Words of `distill stream SOURCE`."""

    def words(source: object, *more: object) -> tuple[object, ...]:
        return ("stream", source, "--model", run, "--out", tmp_path / "out.zarr", *cpu, *more)

    return words


Words = Callable[..., tuple[object, ...]]


def test_no_command_prints_the_help(cli: Cli) -> None:
    said = cli()
    assert said.code == 2
    assert said.err.startswith("Usage: distill")
    assert "\n  evaluate " in said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--bogus",), "No such option: --bogus"),
        (("strem",), "No such command 'strem'"),
        (("stream",), "Missing argument"),
        (("stream", "a.h5"), "Missing option '--model'"),
        (("stream", "a.h5", "--model", "m", "--out", "o", "--bogus"), "No such option: --bogus"),
        (("pca", "a.h5", "--section", "two"), "'--section'"),
    ],
)
def test_wrong_words(refuses: Refuses, words: tuple[str, ...], says: str) -> None:
    refuses(words, says)


def test_missing_file(refuses: Refuses, stream: Words, cli: Cli, tmp_path: Path) -> None:
    missing = tmp_path / "none.h5"
    refuses(stream(missing), missing, "no such file")
    refuses(stream(f"{missing}:volumes/raw"), missing, "no such file")
    refuses(("info", missing), missing, "no such file")
    refuses(("evaluate", missing, missing), missing, "no such file")
    refuses(("convert", missing, "--out", tmp_path / "w.safetensors"), missing, "no such checkpoint")
    refuses(("train", tmp_path / "t.yaml", tmp_path / "s.yaml"), tmp_path / "t.yaml", "no such file")


def test_missing_model(refuses: Refuses, phantom: Path, cpu: tuple[str, ...], tmp_path: Path) -> None:
    words = ("stream", phantom, "--out", tmp_path / "out.zarr", *cpu, "--model")
    refuses((*words, tmp_path / "no"), tmp_path / "no", "no such file or run folder", "expected a run folder")
    (tmp_path / "empty").mkdir()
    refuses((*words, tmp_path / "empty"), tmp_path / "empty", "expected a run folder")
    refuses(("info", tmp_path / "no.safetensors"), "no such weights file")


def test_missing_dataset(refuses: Refuses, stream: Words, phantom: Path) -> None:
    refuses(stream(f"{phantom}:volumes/row"), phantom, "'volumes/row'", "expected one of: volumes/raw")


def test_volume_without_resolution(refuses: Refuses, stream: Words, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bare.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (2, 32, 32), np.uint8))
    refuses(stream(path), path, "no resolution found", "--resolution Z,Y,X")
    assert cli(*stream(path, "--resolution", "30,6,6")).code == 0


@pytest.mark.parametrize("value", ["6", "30,6", "a,b,c", "0,6,6", "nan,6,6", "-30,6,6"])
def test_bad_resolution(refuses: Refuses, stream: Words, tmp_path: Path, value: str) -> None:
    path = tmp_path / "bare.npy"
    np.save(path, np.zeros((2, 32, 32), np.uint8))
    refuses(stream(path, f"--resolution={value}"), "resolution", "expected three")


def test_labels_of_another_shape(refuses: Refuses, train: Cli, tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    write_cremi(path, labels=np.ones((20, 96, 95), np.uint64), resolution=(30, 6, 6), offset=(0, 0, 96 * 6))
    words = (tmp_path / "run", f"student.data.labels={path}")
    refuses(words, path, "covers nothing of", "expected resolution and offset", call=train)


def test_float_labels(refuses: Refuses, cli: Cli, phantom: Path, tmp_path: Path) -> None:
    """Floats are ids where every one is a whole number."""
    path = tmp_path / "labels.h5"
    truth = open_labels(phantom).read()
    with h5py.File(path, "w") as file:
        ids = file.create_dataset("ids", data=truth.astype(np.float32))
        ids.attrs["resolution"] = (30, 6, 6)
    said = cli("evaluate", f"{path}:ids", phantom, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["voi_sum"] == pytest.approx(0, abs=1e-12)
    assert found["voxels"] == np.count_nonzero(truth)
    with h5py.File(path, "r+") as file:
        file["ids"][19, 95, 95] = 1.5
    refuses(("evaluate", f"{path}:ids", phantom), f"{path}:ids", "float32", "must be integers", "1.5")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("student.training.step=3", ("student.yaml", "'training.step'", "did you mean 'training.steps'?")),
        ("student.trainng.steps=3", ("student.yaml", "'trainng'", "did you mean 'training'?")),
        ("teacher.decoder.seeds.min_voxel=3", ("teacher.yaml", "did you mean 'decoder.seeds.min_voxels'?")),
        ("student.training.steps=many", ("student.yaml", "training.steps", "'many'", "valid integer")),
        ("student.training.steps=0", ("training.steps", "0", "greater than or equal to 1")),
        ("student.training.precision=16", ("training.precision", "16", "'auto', '32-true' or 'bf16-mixed'")),
        ("student.data.validation=[10,14]", ("student.yaml", "[10, 14]", "overlaps train [0, 12]")),
        ("student.data.validation=[12,40]", ("student.data.validation", "40", "20 sections")),
        ("student.data.train=[3,3]", ("train", "[3, 3]", "expected 0 <= first < last")),
        ("student.training.crop=[3,128,32]", ("student.training.crop", "[3, 128, 32]", "[12, 96, 96]")),
        ("student.training.crop=[13,32,32]", ("student.training.crop", "[13, 32, 32]", "[12, 96, 96]")),
        ("student.training.crop=[1,32,32]", ("training.crop", "[1, 32, 32]", "at least 2")),
        ("teacher.filters=[8,8,8,8,9]", ("teacher.yaml", "filters", "[8, 8, 8, 8, 9]", "multiples of 8")),
        ("student.embedding=5", ("student.loss.graft", "teacher.embedding is 4", "student.embedding 5")),
        ("bogus", ("bogus", "expected teacher.KEY=VALUE or student.KEY=VALUE")),
        ("student.data.raw=none.h5", ("none.h5", "no such file")),
    ],
)
def test_bad_configuration(refuses: Refuses, train: Cli, tmp_path: Path, word: str, says: tuple[str, ...]) -> None:
    refuses((tmp_path / "run", word), *says, call=train)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "\x00"])
def test_configuration_that_is_no_mapping(refuses: Refuses, tmp_path: Path, text: str) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text(text)
    refuses(("train", path, PAIR[1], "--out", tmp_path / "run"), path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(refuses: Refuses, stream: Words, phantom: Path, train: Cli, tmp_path: Path) -> None:
    says = "--device", "'cuda'", "no GPU", "expected auto or cpu"
    refuses(stream(phantom, "--device", "cuda"), *says)
    refuses((tmp_path / "run", "--device", "cuda"), *says, call=train)


def test_unknown_device(refuses: Refuses, stream: Words, phantom: Path, train: Cli, tmp_path: Path) -> None:
    says = "--device", "'tpu'", "expected auto, cpu, cuda or cuda:N"
    refuses(stream(phantom, "--device", "tpu"), *says)
    refuses((tmp_path / "run", "--device", "tpu"), *says, call=train)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--sections", "5", "expected FIRST:LAST"),
        ("--sections", "a:b", "expected FIRST:LAST"),
        ("--sections", "4:4", "expected a range within 0:20"),
        ("--sections", "4:21", "expected a range within 0:20"),
        ("--sections", "-2:4", "expected a range within 0:20"),
        ("--sections", "20:", "expected a range within 0:20"),
        ("--precision", "16", "is not one of 'auto', '32-true', 'bf16-mixed'"),
        ("--merge", "1.5", "expected a number from 0 to 1"),
        ("--merge", "nan", "expected a number from 0 to 1"),
    ],
)
def test_bad_options(refuses: Refuses, stream: Words, phantom: Path, option: str, value: str, says: str) -> None:
    refuses(stream(phantom, f"{option}={value}"), option, value.removesuffix(":"), says)


@pytest.mark.parametrize(("option", "value"), [("--network", "both"), ("--method", "mutex")])
def test_bad_choice_of_segment(refuses: Refuses, stream: Words, phantom: Path, option: str, value: str) -> None:
    refuses(("segment", *stream(phantom)[1:], option, value), option, f"'{value}' is not one of ")


def test_out_that_exists(refuses: Refuses, stream: Words, phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    out.write_text("mine")
    for command in ("stream", "segment"):
        words = (command, *stream(phantom)[1:])
        refuses(words, out, "exists already", "--overwrite")
        refuses((*words, "--overwrite"), out, "not a Zarr store")
    assert out.read_text() == "mine"


def test_folder_that_is_no_store_is_not_overwritten(
    refuses: Refuses, stream: Words, phantom: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr" / "thesis.txt").write_text("mine")
    refuses(stream(phantom, "--overwrite"), tmp_path / "out.zarr", "not a Zarr store")


def test_out_that_holds_the_source_is_not_overwritten(
    refuses: Refuses, cli: Cli, stream: Words, phantom: Path, tmp_path: Path
) -> None:
    assert cli(*stream(phantom, "--sections", ":2")).code == 0
    source = tmp_path / "out.zarr:segmentation"
    for command in ("stream", "segment"):
        refuses((command, *stream(source, "--overwrite")[1:]), tmp_path / "out.zarr", "holds the source")
    assert open_labels(source).read().max() > 0


@pytest.mark.parametrize("command", ["stream", "segment", "train", "convert", "pca"])
def test_unwritable_output(
    refuses: Refuses, stream: Words, run: Path, phantom: Path, train: Cli, tmp_path: Path, command: str
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    if command == "train":
        for out in (blocked, blocked / "run"):
            refuses((out,), out, "cannot be written", call=train)
    elif command == "pca":
        words = ("--teacher", run, "--student", run, "--section", 3, "--window", "4,48,48", "--device", "cpu")
        refuses(("pca", phantom, *words, "--out", blocked / "a.png"), blocked / "a.png", "cannot be written")
        refuses(("pca", phantom, *words, "--out", tmp_path / "a.doc"), tmp_path / "a.doc", "'.doc'", ".png")
    elif command == "convert":
        out = blocked / "w.safetensors"
        refuses(("convert", "any.ckpt", "--out", out), out, "cannot be written", f"{blocked} is not a folder")
        refuses(("convert", "any.ckpt", "--out", tmp_path / "w.pt"), tmp_path / "w.pt", "ends in .safetensors")
    else:
        for out in (blocked / "out.zarr", blocked / "deep" / "out.zarr"):
            says = out, "cannot be written", f"{blocked} is not a folder"
            refuses((command, *stream(phantom)[1:], "--out", out), *says)
        for out in (".", "/"):
            refuses((command, *stream(phantom)[1:], "--out", out), "--out", f"'{out}'", "a name of its own")


def test_record_that_cannot_be_written(cli: Cli, stream: Words, phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zarr.run.json").mkdir()
    said = cli(*stream(phantom, "--sections", ":2"))
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"distill: {tmp_path / 'out.zarr.run.json'}: cannot be written: ")


def test_run_folder_that_holds_a_run(refuses: Refuses, train: Cli, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refuses((run,), run, "holds a run already", "--resume", call=train)
    refuses((run, "--resume", "student.training.lr=0.1"), run / "student.yaml", "differs", "to resume", call=train)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_checkpoint_of_another_architecture(
    refuses: Refuses, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path: Path
) -> None:
    teacher, student = (run / "best" / f"{kind}.safetensors" for kind in ("teacher", "student"))
    words = (phantom, "--out", tmp_path / "out.zarr", *cpu, "--model")
    refuses(("stream", *words, teacher), teacher, "holds a teacher", "expected a student")
    refuses(("segment", *words, student, "--network", "teacher"), student, "holds a student", "expected a teacher")
    refuses(("convert", student, "--out", tmp_path / "w.safetensors"), student, "neither an AGQ nor a CAD checkpoint")
    other = tmp_path / "other.safetensors"
    tensors, metadata = altered(student, lambda config: config.update(width=8))
    save_file(tensors, other, metadata)
    refuses(("stream", *words, other), other, "of another architecture", "expected")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, foreign)
    refuses(("stream", *words, foreign), foreign, "expected 'affinity-distill 1'")


def altered(path: Path, change: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A weights file whose configuration says something else than its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["config"])
    change(config)
    return load_file(path), {**metadata, "config": json.dumps(config)}


@pytest.mark.parametrize("kept", [0, 7, 200, -100])
def test_truncated_weights(
    refuses: Refuses, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes((run / "best" / "student.safetensors").read_bytes()[:kept])
    words = ("stream", phantom, "--model", path, "--out", tmp_path / "out.zarr", *cpu)
    refuses(words, path, "not a safetensors file")
    refuses(("info", path), path, "not a safetensors file")
    refuses(("convert", path, "--out", tmp_path / "w.safetensors"), path, "not a safetensors file")


def test_truncated_state(refuses: Refuses, train: Cli, run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    state = folder / "checkpoints" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    said = train(folder, "--resume")
    assert said.code == 2, said.err
    assert len(said.err.splitlines()) == 1
    assert f"{state}: cannot be resumed" in said.err


def test_corrupt_hdf5(refuses: Refuses, stream: Words, phantom: Path, train: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.h5"
    for content in (b"", b"no HDF5 at all", phantom.read_bytes()[:2000]):
        path.write_bytes(content)
        refuses(stream(path), path, "cannot be read")
        refuses(stream(f"{path}:volumes/raw"), path, "cannot be read")
        refuses(("evaluate", path, phantom), path, "cannot be read")
        refuses((tmp_path / "run", f"student.data.raw={path}"), path, "cannot be read", call=train)


def test_corrupt_tiff(refuses: Refuses, stream: Words, tmp_path: Path) -> None:
    import tifffile

    good, path = tmp_path / "good.tif", tmp_path / "bad.tif"
    tifffile.imwrite(good, np.zeros((5, 32, 32), np.uint8), photometric="minisblack")
    for content in (b"", b"no TIFF at all", good.read_bytes()[:100]):
        path.write_bytes(content)
        refuses(stream(path, "--resolution", "30,6,6"), path)


def test_section_that_turns_out_unreadable_leaves_nothing(cli: Cli, stream: Words, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "sections"
    folder.mkdir()
    for z in range(4):
        grey = np.random.default_rng(z).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(grey).save(folder / f"s{z}.png")
    (folder / "s2.png").write_bytes(b"broken")
    before = tree(tmp_path)
    for command in ("stream", "segment"):
        said = cli(command, *stream(folder, "--resolution", "30,6,6")[1:])
        assert said.code == 2
        reported = said.err.splitlines()[-1]
        assert reported.startswith("distill: ")
        assert f"{folder / 's2.png'}: cannot be read" in reported
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--section", "0"), ("--section", "0", "expected 1 to 19")),
        (("--section", "20"), ("--section", "20", "expected 1 to 19")),
        (("--section", "-1"), ("--section", "-1", "expected 1 to 19")),
        (("--section", "5", "--window", "4,96,96"), ("--window", "(4, 96, 96)", "(96, 96)", "a smaller window")),
        (("--section", "5", "--window", "4,200,200"), ("--window", "(4, 200, 200)", "a smaller window")),
        (("--section", "5", "--window", "4,48"), ("--window", "'4,48'", "expected three numbers")),
        (("--section", "5", "--window", "4,1.5,48"), ("--window", "'4,1.5,48'", "whole numbers")),
        (("--section", "5", "--window", "4,48,48", "--overlap", "0,48,0"), ("--overlap", "(0, 48, 0)", "(4, 48, 48)")),
        (("--section", "5", "--window", "4,48,48", "--overlap=-1,0,0"), ("--overlap", "(-1, 0, 0)", "at least 0")),
        (("--section", "5", "--window", "0,48,48"), ("(0, 48, 48)", "expected")),
    ],
)
def test_bad_pca(
    refuses: Refuses, run: Path, phantom: Path, tmp_path: Path, words: tuple[str, ...], says: tuple[str, ...]
) -> None:
    options = ("--teacher", run, "--student", run, "--out", tmp_path / "a.png", "--device", "cpu")
    refuses(("pca", phantom, *options, *words), *says)


def test_pca_of_channels(refuses: Refuses, run: Path, streamed: Path, tmp_path: Path) -> None:
    options = ("--teacher", run, "--student", run, "--out", tmp_path / "a.png", "--section", "2", "--device", "cpu")
    refuses(
        ("pca", f"{streamed}:affinity", *options),
        f"{streamed}:affinity",
        "3 channels",
        "one grey value",
        "--channel 0 to 2",
    )


@pytest.mark.parametrize(
    ("resolution", "offset", "says", "where"),
    [
        ((30, 6, 6), (510, 0, 0), "75 % of it lies in", np.s_[17:20]),
        ((30, 6, 6), (-30, 0, 0), "75 % of it lies in", np.s_[:3]),
        ((30, 12, 12), (0, 0, 0), "30 x 6 x 6 nm are compared at the centres of those of", np.s_[:4, 1::2, 1::2]),
    ],
)
def test_evaluate_of_what_fits_in_part(
    cli: Cli, phantom: Path, tmp_path: Path, resolution: Triple, offset: Triple, says: str, where: tuple[slice, ...]
) -> None:
    """The voxels in common are scored, and their share is said."""
    path = tmp_path / "found.h5"
    truth = open_labels(phantom).read()[where]
    write_cremi(path, labels=np.ones((4, 96, 96), np.uint64), resolution=resolution, offset=offset)
    said = cli("evaluate", path, phantom, "--preset", "skimage", "--json")
    assert said.code == 0, said.err
    assert says in said.err
    found = json.loads(said.out)
    whole = score(np.ones_like(truth), truth, "skimage")
    assert found["voxels"] == whole.voxels > 0
    assert found["voi_merge"] == pytest.approx(whole.voi_merge)


def test_evaluate_takes_the_segmentation_of_a_store(cli: Cli, streamed: Path, phantom: Path) -> None:
    found, named = (cli("evaluate", name, phantom, "--json") for name in (streamed, f"{streamed}:segmentation"))
    assert found.code == 0, found.err
    assert json.loads(found.out)["voxels"] > 0
    assert found.out == named.out


def test_evaluate_that_does_not_fit(refuses: Refuses, streamed: Path, phantom: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.h5"
    labels = np.ones((4, 96, 96), np.uint64)
    for resolution, offset, says in (
        ((30, 6, 6), (0, 3, 0), ("0.5", "expected whole voxels")),
        ((30, 6, 6), (600, 0, 0), ("(20, 0, 0)", "(24, 96, 96)", "(20, 96, 96)", "share no voxel")),
        ((30, 6, 6), (-120, 0, 0), ("(-4, 0, 0)", "(20, 96, 96)", "share no voxel")),
    ):
        write_cremi(path, labels=labels, resolution=resolution, offset=offset)
        refuses(("evaluate", path, phantom), path, *says)
    affinity, segmentation = f"{streamed}:affinity", f"{streamed}:segmentation"
    for words, says in (
        (
            (affinity, phantom, "--blocks", "2,8,8", "--list", "a.csv"),
            ("expected a segmentation for --list, --blocks",),
        ),
        ((affinity,), ("LABELS: found none",)),
        ((segmentation,), ("LABELS: found none, expected ground truth, or --skeletons",)),
        ((segmentation, "--skeletons", "a.swc", "--blocks", "2,8,8"), ("LABELS: found none", "--blocks")),
        ((segmentation, phantom, "--skeletons", "a.swc", "--skeletonize"), ("--skeletonize: found --skeletons",)),
        ((segmentation, phantom, "--blocks", "2,8"), ("--blocks: found '2,8'",)),
        ((segmentation, phantom, "--list", tmp_path / "a.txt"), ("--list", "expected a file ending in .csv")),
        ((segmentation, phantom, "--plot", tmp_path / "a.gif"), ("found the suffix '.gif'",)),
        (
            (segmentation, phantom, "--skeleton-units", "feet"),
            ("'--skeleton-units': 'feet' is not one of 'nm', 'um', 'voxel'",),
        ),
        ((segmentation, phantom, "--workers", "0"), ("--workers",)),
    ):
        refuses(("evaluate", *words), *says)
    refuses(
        ("evaluate", f"{streamed}:segmentation", phantom, "--preset", "best"), "'best'", ", ".join(map(repr, PRESETS))
    )


# ---------------------------------------------------------------- as a process


def test_process_ends_with_two_and_one_line(tmp_path: Path) -> None:
    running = process("stream", "none.h5", "--model", "none", "--out", tmp_path / "out.zarr")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 2
    assert out == ""
    assert err == "distill: none.h5: no such file\n"
    assert not list(tmp_path.iterdir())


def test_process_of_a_whole_stream(run: Path, phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    running = process("stream", phantom, "--model", run, "--out", out, "--sections", "4:9", "--device", "cpu")
    said, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert said.startswith(f"{out}:affinity and {out}:segmentation, ")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['distill', '--help']\n"
        "from distill.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'h5py', 'matplotlib', 'tensorstore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


ALLOCATIONS = {
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB": "2.50 GiB",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8192 bytes. Error code 12": "8192 bytes",
    "Unable to allocate 931. GiB for an array with shape (1000000, 1000000) and data type uint8": "931 GiB",
}


@pytest.mark.parametrize("text", ALLOCATIONS)
@pytest.mark.parametrize(("command", "less"), [("stream", "--tile"), ("segment", "--block")])
def test_memory_that_is_short_is_one_line(
    cli: Cli,
    phantom: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    command: str,
    less: str,
) -> None:
    """On a GPU and on the host, wherever it happens; and what to ask less of."""
    kind = {"CUDA": torch.OutOfMemoryError, "Defa": RuntimeError, "Unab": MemoryError}[text[:4]]

    def short(*given: Any, **named: Any) -> Any:
        raise kind(text)

    module = {"stream": "streaming.stream", "segment": "blockwise.segment"}[command]
    monkeypatch.setattr(f"distill.inference.{module}.open_grey", short)
    said = cli(command, phantom, "--model", "ac4", "--out", tmp_path / "out.zarr", "--device", "cpu")
    assert said.code == 1
    assert said.err.count("\n") == 1
    where = "the GPU" if text.startswith("CUDA") else "this machine"
    assert f"{where} is out of memory: {ALLOCATIONS[text]} more were asked for" in said.err
    assert less in said.err
    assert not (tmp_path / "out.zarr").exists()


def test_other_errors_keep_their_traceback(
    cli: Cli, phantom: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any, **named: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr("distill.inference.streaming.stream.open_grey", wrong)
    with pytest.raises(RuntimeError, match="a defect"):
        cli("stream", phantom, "--model", run, "--out", tmp_path / "out.zarr", "--device", "cpu")
