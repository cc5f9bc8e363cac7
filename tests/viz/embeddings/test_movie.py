"""The movie: its frames, its colours, one frame in memory at a time, and an encoder that may be missing."""

from __future__ import annotations

import stat
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

from distill.core.errors import DistillError
from viz.embeddings.draw import Panel
from viz.embeddings.movie import MovieFrames, movie_suffix, write_movie

RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (40, 40), dtype=np.uint8)
RGB = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)


def frame(value: int, size: tuple[int, int] = (30, 50)) -> np.ndarray:
    """A ramp of greys with a patch of one colour."""
    image = np.repeat(np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None], size[0], 0).repeat(3, 2)
    image[5:10, 5:10] = (value, 0, 255 - value)
    return np.ascontiguousarray(image)


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """An `ffmpeg` on the search path that runs these lines of Python."""
    script = folder / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(script.parent))


def test_gif_has_every_frame_in_order_loops_and_keeps_its_colours(tmp_path: Path) -> None:
    frames = [frame(v) for v in (0, 255, 0, 100)]
    write_movie(frames, tmp_path / "a.gif", key=np.concatenate([frame(0)[:15], frame(255)[:15]]), rate=4)
    with Image.open(tmp_path / "a.gif") as movie:
        assert movie.info["loop"] == 0
        shown = []
        for image in ImageSequence.Iterator(movie):
            assert image.info["duration"] == 250
            shown.append(np.asarray(image.convert("RGB")).astype(int))
    assert len(shown) == 4
    assert np.array_equal(shown[0], shown[2])
    for found, given in zip(shown[:3], frames, strict=False):
        assert np.abs(found - given).max() <= 8  # 256 colours
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_only_one_frame_is_held(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def made() -> Iterator[np.ndarray]:
        for v in range(12):
            image = frame(20 * v)
            alive.append(weakref.ref(image))
            assert sum(ref() is not None for ref in alive) <= 2
            yield image
            del image

    write_movie(made(), tmp_path / "a.gif", key=frame(0))
    with Image.open(tmp_path / "a.gif") as movie:
        assert movie.n_frames == 12


def test_mp4_gets_every_pixel_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ffmpeg(
        tmp_path,
        monkeypatch,
        "open(sys.argv[-1], 'wb').write(' '.join(sys.argv[1:-1]).encode() + b'|' + sys.stdin.buffer.read())",
    )
    frames = [frame(v, (31, 51)) for v in (0, 9, 200)]
    write_movie(iter(frames), tmp_path / "a.mp4", key=frames[0], rate=7)
    words, pixels = (tmp_path / "a.mp4").read_bytes().split(b"|", 1)
    assert pixels == b"".join(f.tobytes() for f in frames)
    for word in (b"-s 51x31", b"-framerate 7", b"-pix_fmt rgb24", b"-pix_fmt yuv420p", b"pad=52:32"):
        assert word in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "bin"]


def test_encoder_that_is_missing_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.mp4"
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (lambda: movie_suffix(out), lambda: write_movie([frame(0)], out, key=frame(0))):
        with pytest.raises(DistillError, match=r"a\.mp4: found no `ffmpeg`.*\.gif"):
            call()
    fake_ffmpeg(tmp_path, monkeypatch, "sys.stderr.write('Unknown encoder'); sys.exit(3)")
    with pytest.raises(DistillError, match="ffmpeg failed with 3: Unknown encoder"):
        write_movie([frame(0, (400, 400))] * 20, out, key=frame(0, (400, 400)))
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    for frames, key, says in (
        ([], frame(0), "no frame"),
        ([frame(0), frame(0, (8, 8))], frame(0), r"\(8, 8, 3\)"),
        ([frame(0).astype(float)], frame(0), "float64"),
    ):
        with pytest.raises(DistillError, match=says):
            write_movie(frames, tmp_path / "a.gif", key=key)
    with pytest.raises(DistillError, match=r"'\.avi', expected \.gif or \.mp4"):
        movie_suffix(tmp_path / "a.avi")
    with pytest.raises(DistillError, match="cannot be written"):
        write_movie([frame(0)], tmp_path / "none" / "a.gif", key=frame(0))
    assert list(tmp_path.iterdir()) == []


def test_frames_show_the_section_its_number_and_a_scale_bar() -> None:
    frames = MovieFrames(RAW, [Panel("Student, whole section", RGB, "note")], (6, 6), None, dpi=100)
    one, other = frames.draw(RAW, [RGB], 3), frames.draw(255 - RAW, [255 - RGB], 4)
    again = frames.draw(RAW, [RGB], 3)
    assert one.shape == other.shape
    assert np.array_equal(one, again)
    figure: Figure = frames._figure
    assert figure.axes[0].texts[1].get_text() == "Section 3"
    assert any(p.get_gid() == "scale bar" for p in figure.axes[0].patches)
    ax = figure.axes[1].get_window_extent()
    zoom = round(ax.width) // 40
    left, top = round(ax.x0), round(figure.bbox.height - ax.y1)
    panel = one[top : top + 40 * zoom, left : left + 40 * zoom]
    assert np.array_equal(panel, np.kron(RGB, np.ones((zoom, zoom, 1), np.uint8)))
    assert np.array_equal(other[top : top + 40 * zoom, left : left + 40 * zoom], 255 - panel)
    changed = np.any(one != frames.draw(RAW, [RGB], 13), axis=(1, 2))
    assert changed[:30].any()
    assert not changed[30:].any()
    with pytest.raises(DistillError, match="frame: found"):
        frames.draw(RAW[:10], [RGB], 3)
    with pytest.raises(DistillError, match="frame: found"):
        frames.draw(RAW, [], 3)
