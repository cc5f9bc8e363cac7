"""Every augmentation that is on has its example, does what its key says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import viz.gallery.gallery as recipe
from distill.config import AUGMENTATIONS, AugmentConfig
from distill.io.writers.cremi import write_cremi
from viz.gallery.figure import Example
from viz.gallery.gallery import gallery

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LINED = ("rotate", "rescale", "elastic", "misalign")
RESOLUTION = (30.0, 6.0, 6.0)
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gallery") / "raw.h5"
    raw = np.random.default_rng(0).integers(40, 200, (20, 130, 140), dtype=np.uint8)
    write_cremi(path, raw=raw, resolution=RESOLUTION)
    return str(path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    kept: list[Example] = []
    monkeypatch.setattr(recipe, "gallery_figure", lambda examples, *_: kept.extend(examples))
    return kept


def test_every_key_is_shown_and_does_what_it_says(source: str, drawn: list[Example], tmp_path: Path) -> None:
    found = gallery(source, tmp_path / "a.png", section=7)
    assert found.shown == AUGMENTATIONS
    assert found.off == ()
    raw = recipe.open_grey(source).read()
    z, y, x = found.box.start
    assert found.box.shape == (12, 104, 104)
    piece = raw[z : z + 12, y : y + 104, x : x + 104]
    lined = piece.copy()
    lined[:, 13::26] = lined[:, :, 13::26] = 255
    for one in drawn:
        assert np.array_equal(one.before, lined if one.key.removeprefix("augment.") in LINED else piece)
        assert z + one.section == 7
        assert not np.array_equal(one.after[one.section], one.before[one.section])
    after = {one.key.removeprefix("augment."): one.after.astype(int) for one in drawn}
    assert set(after) == set(AUGMENTATIONS)
    before, at = piece.astype(int), drawn[0].section
    mirrored = [np.flip(before, axes) for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))]
    assert any(np.array_equal(after["flips"], m) for m in mirrored)
    assert np.array_equal(after["transposes"], before.transpose(0, 2, 1))
    for key in ("grey", "grey_section"):  # a function of the grey value, in all sections or in each
        for part in [slice(None)] if key == "grey" else range(12):
            pairs = {(b, a) for b, a in zip(before[part].ravel(), after[key][part].ravel(), strict=True)}
            assert len(pairs) == len({b for b, _ in pairs})
    assert np.abs(after["noise"] - before).mean() < 30
    assert abs((after["noise"] - before).mean()) < 1
    assert after["blur"][at].std() < before[at].std()
    assert all((after["local_contrast"][k] != before[k]).any() for k in range(12))
    for key in ("contrast_jump", "out_of_focus", "motion_blur", "missing", "missing_part"):
        assert [k for k in range(12) if not np.array_equal(after[key][k], before[k])] == [at]
    assert np.ptp(after["missing"][at]) == 0
    assert len(np.unique(after["missing_part"][at][after["missing_part"][at] != before[at]])) == 1
    wide = raw.astype(int)[z : z + 12]
    wide[:, [k for k in range(130) if (k - y) % 26 == 13]] = 255
    wide[:, :, [k for k in range(140) if (k - x) % 26 == 13]] = 255
    moved = [
        [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if np.array_equal(after["misalign"][k], wide[k, y + dy : y + dy + 104, x + dx : x + dx + 104])
        ]
        for k in range(12)
    ]
    assert all(len(one) == 1 for one in moved)
    assert moved[at] != [(0, 0)]


def test_notes_say_probability_and_strength(source: str, drawn: list[Example], tmp_path: Path) -> None:
    gallery(source, tmp_path / "a.png")
    notes = {one.key.removeprefix("augment."): one.note.replace("\u00a0", " ") for one in drawn}
    config = AugmentConfig()
    for key in AUGMENTATIONS[2:]:
        assert notes[key].endswith(f"p = {getattr(config, key):g}")
    assert "up to 4 pixels" in notes["misalign"]
    assert all(notes.values())


def test_configuration_decides_what_is_on_and_how_far(
    source: str, drawn: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM", source)
    pair = CONFIGS / "phantom_cpu"
    for name in ("teacher", "student"):
        (tmp_path / f"{name}.yaml").write_text((pair / f"{name}.yaml").read_text())
    with (tmp_path / "student.yaml").open("a") as file:
        file.write("augment: {flips: false, grey: 0, noise: 0.9, misalign_pixels: 9, missing: 0}\n")
    found = gallery(source, tmp_path / "a.png", folder=tmp_path)
    assert found.off == ("flips", "grey", "missing", "local_contrast")
    misaligned = next(one for one in drawn if one.key == "augment.misalign")
    assert [one.key for one in drawn] == [f"augment.{key}" for key in AUGMENTATIONS if key not in found.off]
    assert "up to 9 pixels" in misaligned.note
    assert any("p\u00a0=\u00a00.9" in one.note for one in drawn)


def test_same_seed_same_figure(source: str, drawn: list[Example], tmp_path: Path) -> None:
    for seed in (1, 1, 2):
        gallery(source, tmp_path / "a.png", seed=seed)
    count = len(AUGMENTATIONS)
    one, two, other = drawn[:count], drawn[count : 2 * count], drawn[2 * count :]
    assert all(np.array_equal(a.after, b.after) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a.after, b.after) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("section", [0, 19])
@pytest.mark.parametrize("shape", [(20, 50, 60), (3, 30, 30), (1, 20, 40)])
def test_small_volumes(drawn: list[Example], tmp_path: Path, shape: tuple[int, int, int], section: int) -> None:
    np.save(tmp_path / "raw.npy", np.random.default_rng(0).random(shape, np.float32))
    section = min(section, shape[0] - 1)
    found = gallery(str(tmp_path / "raw.npy"), tmp_path / "a.png", section, resolution=RESOLUTION)
    assert found.box.start[0] + drawn[0].section == section
    assert drawn[0].before.shape == (min(12, shape[0]), *shape[1:])


@pytest.mark.commands("gallery")
def test_command_writes_the_figure(cli: Cli, source: str, tmp_path: Path) -> None:
    out = tmp_path / "gallery.png"
    said = cli("gallery", source, "--out", out, "--section", "3", "--seed", "4")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [f"section 3: {', '.join(AUGMENTATIONS)}", f"figure: {out}"]
    assert out.read_bytes().startswith(b"\x89PNG")


def test_wrong_use(cli: Cli, source: str, tmp_path: Path) -> None:
    said = cli("gallery", source, "--out", tmp_path / "a.png", "--section", "20")
    assert (said.code, said.out) == (2, "")
    assert "--section: found 20, expected 0 to 19" in said.err
    said = cli("gallery", source, "--out", tmp_path / "a.gif")
    assert "expected one of .png, .svg, .pdf" in said.err
    said = cli("gallery", source, "--out", tmp_path / "a.png", "--config", tmp_path)
    assert "teacher.yaml: no such file" in said.err
