"""Movie of the embedding figure's panels through a stack, with one frame in memory at a time.

GIF is written by Pillow, MP4 by an `ffmpeg` on the search path.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.core.atomic import replacing
from distill.core.errors import DistillError, ShapeError, SourceError
from viz.embeddings.draw import Panel, build_pca_figure
from viz.style import STYLE

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

RATE = 5  # sections per second
_DPI = 228  # a third of the page is then just over 512 pixels wide

Image = npt.NDArray[np.uint8]


class MovieFrames:
    """Draws the panels of one section after another: the figure is laid out once, and only its images change."""

    def __init__(
        self,
        raw: Image,
        panels: Sequence[Panel],
        resolution: tuple[float, float],
        windows: tuple[Sequence[int], Sequence[int]] | None,
        dpi: int = _DPI,
    ) -> None:
        """Lay out the frames.

        Args:
            raw: (Y, X) uint8 of any section.
            panels: as in `build_pca_figure`; titles and notes are the same for every section.
            resolution: nm per voxel in y and x.
            windows: rows and columns at which a window begins, or none.
            dpi: device pixels per inch.

        Raises:
            DistillError: as `build_pca_figure`.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self._figure = build_pca_figure(raw, panels, resolution, windows, dpi=dpi)
        self._canvas = FigureCanvasAgg(self._figure)
        self._shapes = [raw.shape, *(p.rgb.shape for p in panels)]
        self._title = next(text for text in self._figure.axes[0].texts if text.get_gid() == "title")

    def draw(self, raw: Image, images: Sequence[Image], section: int) -> Image:
        """Draw one frame.

        Args:
            raw: (Y, X) uint8 section.
            images: (Y, X, 3) uint8 of the panels.
            section: its number, written above it.

        Returns:
            (H, W, 3) uint8, of the same size every time.

        Raises:
            DistillError: number, size or type of the images differs from the layout.
        """
        from matplotlib import rc_context

        shown = [raw, *images]
        if [i.shape for i in shown] != self._shapes or any(i.dtype != np.uint8 for i in shown):
            raise ShapeError(f"frame: found {[i.shape for i in shown]}, expected {self._shapes} uint8")
        with rc_context(STYLE):
            for ax, image in zip(self._figure.axes, shown, strict=True):
                ax.images[0].set_data(image)
            self._title.set_text(f"Section {section}")
            self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())[..., :3]


def movie_suffix(out: Path) -> str:
    """Return the format of a movie; call it before a long computation to detect errors early.

    Raises:
        DistillError: not .gif or .mp4, or .mp4 without ffmpeg.
    """
    suffix = out.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise DistillError(f"{out}: found the suffix {out.suffix!r}, expected .gif or .mp4")
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise DistillError(f"{out}: found no `ffmpeg` on the search path, which .mp4 needs; install it or use .gif")
    return suffix


def write_movie(frames: Iterable[Image], out: Path, key: Image, rate: int = RATE) -> None:
    """Write frames one by one under a temporary name that is then renamed.

    Args:
        frames: (H, W, 3) uint8 each, all of one size.
        out: .gif or .mp4.
        key: a typical frame, from which the 256 colours of a GIF are chosen.
        rate: frames per second.

    Raises:
        DistillError: as `movie_suffix`; or there is no frame, frames differ in size, the file cannot be written, or
            ffmpeg fails.
    """
    write = _write_gif if movie_suffix(out) == ".gif" else _write_mp4
    try:
        with replacing(out, alone=False) as temporary:
            write(_checked(frames, key.shape, out), temporary, key, rate)
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror or error})") from error


def _checked(frames: Iterable[Image], shape: tuple[int, ...], out: Path) -> Iterable[Image]:
    found = 0
    for frame in frames:
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ShapeError(f"frame: found {frame.shape} {frame.dtype}, expected {shape} uint8")
        found += 1
        yield frame
    if found == 0:
        raise DistillError(f"{out}: found no frame to write")


def _write_gif(frames: Iterable[Image], part: Path, key: Image, rate: int) -> None:
    from PIL import GifImagePlugin as Gif
    from PIL import Image as Pillow

    palette = Pillow.fromarray(key).quantize(256)
    with part.open("wb") as file:
        file.write(b"".join(Gif.getheader(palette.copy(), info={"loop": 0})[0]))
        for frame in frames:
            picture: Picture = Pillow.fromarray(frame).quantize(palette=palette, dither=Pillow.Dither.NONE)
            file.write(b"".join(Gif.getdata(picture, duration=round(1000 / rate))))
        file.write(b";")


def _write_mp4(frames: Iterable[Image], part: Path, key: Image, rate: int) -> None:
    height, width = key.shape[:2]
    # Players need 4:2:0 chroma, which needs an even size: the last row or column of an odd size is repeated.
    even = f"pad={width + width % 2}:{height + height % 2},fillborders=right={width % 2}:bottom={height % 2}:mode=smear"
    given = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -framerate {rate} -i -".split()
    kept = f"-vf {even} -pix_fmt yuv420p -movflags +faststart -f mp4".split()
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", *given, *kept, str(part)]
    with tempfile.TemporaryFile() as said:
        process: subprocess.Popen[Any] = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said)
        assert process.stdin is not None
        try:
            for frame in frames:
                process.stdin.write(frame.tobytes())
        except BrokenPipeError:
            pass  # its own message, below, gives the cause
        except BaseException:
            process.kill()
            raise
        finally:
            process.communicate()
        said.seek(0)
        message = said.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise DistillError(f"{part}: ffmpeg failed with {process.returncode}: {message or 'no message'}")
