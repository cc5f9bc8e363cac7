"""Measure the VOI of one model on the same sections at other pixel sizes, unscaled and with `--rescale`.

    python benchmarks/rescale.py ac4.h5 --model ac4 --box 80:88,512:1024,512:1024 --pixels 4,5,7,12 --json OUT.json

Sections are resized by scikit-image (cubic to smaller pixels, linear with its antialiasing to larger ones), labels by
nearest, and both stored as a volume of that pixel size. Each is streamed and scored by itself, on its own labels; the
first rows are the volume as recorded (`--pixels ""`: these alone), with `--rescale` too where its pixels are not the
model's. `--normalise KIND` replaces the model's normalisation. `--level MEAN,DEVIATION` first sets every section to
them, for models that do not normalise by themselves.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import machine
from numpy.typing import NDArray
from skimage.transform import resize
from tables import provenance, write_json

from distill.core.geometry import Box
from distill.core.normalisation import KINDS
from distill.evaluation.segmentation import evaluate
from distill.inference.grey_values import GreyValues
from distill.inference.options import Options
from distill.inference.streaming.options import Streaming
from distill.inference.streaming.stream import stream
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi
from distill.models.checkpoint import read_weights
from distill.models.load import find_weights


@dataclass(frozen=True)
class Row:
    """One run."""

    pixel: float  # nm
    rescaled: bool
    voi_split: float
    voi_merge: float
    arand: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    box = _box(options.box)
    level = None if options.level is None else tuple(float(n) for n in options.level.split(","))
    raw, labels = open_volume(options.source), open_labels(options.source)
    if len(set(raw.resolution[1:])) > 1:
        raise SystemExit(f"{options.source}: found pixels of {raw.resolution[1:]} nm, expected squares")
    sections, truth = _levelled(raw.read(box), level), labels.read(box)
    own = read_weights(find_weights(options.model, "student")).config["resolution"][1]
    rows = []
    for pixel in (raw.resolution[1], *(float(n) for n in options.pixels.split(",") if n)):
        for rescaled in (False,) if pixel == own else (False, True):
            rows.append(_run(options, sections, truth, raw.resolution, pixel, rescaled=rescaled))
            print(_line(rows[-1]), flush=True)
    if options.json is not None:
        found: dict[str, Any] = {"machine": machine(torch.device("cpu")), "rows": [asdict(row) for row in rows]}
        write_json(options.json, provenance("rescale.py", argv) | found)
    return 0


def _run(
    options: argparse.Namespace,
    sections: NDArray[np.uint8],
    truth: NDArray[np.uint64],
    resolution: tuple[float, float, float],
    pixel: float,
    *,
    rescaled: bool,
) -> Row:
    """Resize, stream, score."""
    factor = resolution[1] / pixel
    height, width = (round(n * factor) for n in sections.shape[1:])
    sized, ids = sections, truth
    if factor != 1:
        how: dict[str, Any] = {"order": 3} if factor > 1 else {"order": 1, "anti_aliasing": True}
        made = [resize(one.astype(np.float32), (height, width), preserve_range=True, **how) for one in sections]
        sized = np.stack([np.rint(one).clip(0, 255).astype(np.uint8) for one in made])
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) / factor).astype(int), size - 1)
            for n, size in zip((height, width), truth.shape[1:], strict=True)
        )
        ids = truth[:, rows][:, :, columns]
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "sections.h5", Path(folder) / "out.zarr"
        write_cremi(source, raw=sized, labels=ids, resolution=(resolution[0], pixel, pixel))
        chosen = Options(device="cpu", precision="32-true", rescale=rescaled, grey=GreyValues(options.normalise))
        stream(str(source), options.model, out, chosen, Streaming())
        scores = evaluate(f"{out}:segmentation", str(source), "skimage", worst=0).scores
    return Row(pixel, rescaled, scores.voi_split, scores.voi_merge, scores.arand)


def _levelled(sections: NDArray[Any], level: tuple[float, ...] | None) -> NDArray[np.uint8]:
    if level is None:
        return sections.astype(np.uint8)
    mean, deviation = level
    values = sections.astype(np.float32)
    own = values.mean((1, 2), keepdims=True), values.std((1, 2), keepdims=True)
    return np.rint((values - own[0]) / own[1] * deviation + mean).clip(0, 255).astype(np.uint8)


def _line(row: Row) -> str:
    how = "--rescale" if row.rescaled else "as it is"
    total = row.voi_split + row.voi_merge
    return f"{row.pixel:g} nm, {how}: {row.voi_split:.3f} + {row.voi_merge:.3f} = {total:.3f} / {row.arand:.3f}"


def _box(text: str) -> Box:
    (z, z_stop), (y, y_stop), (x, x_stop) = (tuple(int(n) for n in part.split(":")) for part in text.split(","))
    return Box((z, y, x), (z_stop, y_stop, x_stop))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="CREMI file with labels")
    parser.add_argument("--model", default="ac4")
    parser.add_argument("--box", required=True, metavar="Z:Z,Y:Y,X:X", help="voxels to take")
    parser.add_argument("--pixels", default="4,5,7,12", help="nm")
    parser.add_argument("--normalise", choices=KINDS, help="default as the model")
    parser.add_argument("--level", metavar="MEAN,DEVIATION", help="set every section to them first")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
