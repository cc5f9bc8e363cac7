"""Measure how a model's scores change with the grey values or the pixel size of the sections.

    python benchmarks/robustness.py ac4.h5:volumes/raw ac4.h5:volumes/labels/neuron_ids --model ac4 --out FOLDER
    --sections 60:68 --box 512:1024,512:1024 --method waterz --json benchmarks/results/robustness_NAME.json

The sections are cut out of the volume and written unchanged and under twelve changes; each is segmented by
`distill segment --method waterz` (or `mws`), or by `distill stream` where the method is `query`, and scored by
`distill evaluate` (preset skimage). FOLDER keeps what is done row by row: the same command continues where it stopped,
`--only` does some of the rows. A change that needs an option (`--invert`, `--rescale`) gets it where the installed
commands have it; the row lists the options that were given. A command that refuses a row leaves its message there.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import rows
import torch
from hardware import machine
from numpy.typing import NDArray
from rows import Rows
from scipy import ndimage
from skimage.exposure import equalize_hist
from tables import provenance, table, write_json

from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres
from distill.io.volume import Volume, open_labels, open_volume
from distill.io.writers.store import create_zarr
from distill.models.load import find_weights

Grey = NDArray[np.float64]  # (D, H, W), 0 to 1
Ids = NDArray[np.uint64]
_SETTINGS = ("volume", "labels", "weights", "sections", "box", "method", "precision")


@dataclass(frozen=True)
class Change:
    """One way in which other sections differ from these.

    Attributes:
        what: it does, for the table.
        grey: from grey values 0 to 1 to the changed ones.
        levels: grey values of the file that is written; more than 256 make it uint16.
        pixels: side of the written pixels in units of the volume's own.
        option: of the command, where it is needed.
    """

    what: str
    grey: Callable[[Grey], Grey] = lambda raw: raw
    levels: int = 256
    pixels: float = 1.0
    option: str | None = None


@dataclass(frozen=True)
class Row:
    """Scores of one change; `refused` holds the message of a command that gave none."""

    change: str
    options: list[str]
    seconds: float
    voi_split: float | None = None
    voi_merge: float | None = None
    voi: float | None = None
    arand: float | None = None
    refused: str | None = None


def _shifted(raw: Grey) -> Grey:
    """Shift by 40 of 256 grey values towards the side with more room."""
    return np.asarray(raw + (40 / 255 if raw.mean() < 0.5 else -40 / 255))


def _jumps(raw: Grey) -> Grey:
    """Change contrast by a factor of 0.7 to 1.3 about the mean and brightness by up to 0.12, section by section."""
    gain, offset = np.random.default_rng(0).uniform(-1, 1, (2, len(raw), 1, 1))
    mean = raw.mean(axis=(1, 2), keepdims=True)
    return np.asarray((raw - mean) * (1 + 0.3 * gain) + mean + 0.12 * offset)


def _noisy(raw: Grey) -> Grey:
    return np.asarray(raw + np.random.default_rng(0).normal(0, 0.05, raw.shape))


CHANGES = {
    "unchanged": Change("as recorded"),
    "gain": Change("grey values times 0.6", lambda raw: 0.6 * raw),
    "offset": Change("40 of 256 grey values added or taken, towards the middle", _shifted),
    "gamma 0.6": Change("grey values to the power of 0.6", lambda raw: raw**0.6),
    "gamma 1.6": Change("grey values to the power of 1.6", lambda raw: raw**1.6),
    "inverted": Change("dark and bright exchanged", lambda raw: 1 - raw, option="--invert"),
    "12 bit": Change("0 to 4095 in uint16", levels=4096),
    "jumps": Change("contrast and brightness of each section on its own", _jumps),
    "equalised": Change(
        "histogram of each section equalised", lambda raw: np.stack([equalize_hist(one, 256) for one in raw])
    ),
    "blur": Change("Gaussian, sigma one pixel", lambda raw: ndimage.gaussian_filter(raw, (0, 1, 1))),
    "noise": Change("Gaussian, sigma 0.05", _noisy),
    "smaller pixels": Change("5 nm in place of 6", pixels=5 / 6, option="--rescale"),
    "larger pixels": Change("7 nm in place of 6", pixels=7 / 6, option="--rescale"),
}


def changed(raw: NDArray[Any], change: Change) -> NDArray[Any]:
    """Apply a change of grey values to sections (D, H, W) uint8; returns uint8 or uint16."""
    grey = np.clip(change.grey(raw / 255.0), 0, 1)
    return np.round(grey * (change.levels - 1)).astype(np.uint8 if change.levels <= 256 else np.uint16)


def resampled(sections: NDArray[Any], pixels: float, *, labels: bool = False) -> NDArray[Any]:
    """Resample sections to a relative pixel size: cubic, labels nearest; the corner is fixed."""
    if pixels == 1:
        return sections
    shape = tuple(int(side / pixels) for side in sections.shape[1:])
    places = np.meshgrid(*((np.arange(n) + 0.5) * pixels - 0.5 for n in shape), indexing="ij")
    if labels:
        y, x = (np.clip(np.round(p), 0, n - 1).astype(int) for p, n in zip(places, sections.shape[1:], strict=True))
        return sections[:, y, x]
    sigma = max(0.0, pixels**2 - 1) ** 0.5 / 2  # no finer detail than the new pixels hold
    smooth = ndimage.gaussian_filter(sections.astype(np.float64), (0, sigma, sigma))
    cubic = np.stack([ndimage.map_coordinates(one, places, order=3, mode="nearest") for one in smooth])
    limits = np.iinfo(sections.dtype)
    return np.clip(np.round(cubic), limits.min, limits.max).astype(sections.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    asked = _parser().parse_args(argv)
    try:
        found = run(asked)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(HEADER, cells(found)))
    if asked.json is not None:
        about = {"machine": machine(torch.device("cpu")), "weights": _digest(asked.model), "rows": found}
        write_json(asked.json, {**provenance("robustness.py", argv), **about})
    return 0


def run(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Compute all requested rows that are missing; return all rows of the folder.

    Raises:
        DistillError: bad input, or a folder that holds rows of other settings.
    """
    unknown = sorted(set(asked.only or ()) - set(CHANGES))
    if unknown:
        raise DistillError(f"--only: found {', '.join(unknown)}, expected some of {', '.join(CHANGES)}")
    settings = {key: str(getattr(asked, key, None)) for key in _SETTINGS} | {"weights": _digest(asked.model)}
    kept = Rows(asked.out, settings)
    raw, labels, resolution = _sections(asked)
    for name, change in CHANGES.items():
        if name in kept or (asked.only and name not in asked.only):
            continue
        row = _measured(asked, name, change, raw, labels, resolution)
        print(f"{name}: {row.refused or f'VOI {row.voi:.3f}'} ({row.seconds:.0f} s)", flush=True)
        kept.keep(name, asdict(row))
    return [row for name in CHANGES if (row := kept.get(name)) is not None]


def _sections(asked: argparse.Namespace) -> tuple[NDArray[np.uint8], Ids, Nanometres]:
    """Return grey values, labels and nm of the part to measure on."""
    volume, truth = open_volume(asked.volume), open_labels(asked.labels)
    z, y, x = (_span(text, size) for text, size in zip((asked.sections, *asked.box), volume.size, strict=True))
    box = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
    for one in (volume, truth):
        _check_inside(one, box)
    raw = volume.read(box)
    if raw.dtype != np.uint8:
        raise DistillError(f"{asked.volume}: found {raw.dtype}, expected uint8")
    return raw, truth.read(box).astype(np.uint64), volume.resolution


def _check_inside(volume: Volume, box: Box) -> None:
    if not Box.of_shape(volume.size).contains(box):
        raise DistillError(f"--sections, --box: {box.start} to {box.stop} is not within {volume.source} {volume.size}")


def _measured(
    asked: argparse.Namespace, name: str, change: Change, raw: NDArray[np.uint8], labels: Ids, resolution: Nanometres
) -> Row:
    """Write the changed sections with their labels, segment and score them by the commands."""
    began = time.perf_counter()
    store, result = (asked.out / f"{name.replace(' ', '-')}{end}.zarr" for end in ("", "-result"))
    nm = (resolution[0], resolution[1] * change.pixels, resolution[2] * change.pixels)
    for dataset, voxels in (
        ("raw", resampled(changed(raw, change), change.pixels)),
        ("labels", resampled(labels, change.pixels, labels=True)),
    ):
        made = create_zarr(
            store, dataset, shape=voxels.shape, dtype=voxels.dtype, resolution=nm, overwrite=(store / dataset).exists()
        )
        made.write(Box.of_shape(voxels.shape), voxels)
    verb = "stream" if asked.method == "query" else "segment"
    given = [change.option] if change.option and change.option in rows.distill(verb, "--help").stdout else []
    found = rows.scores(asked, f"{store}:raw", f"{store}:labels", asked.model, result, *given)
    return Row(name, given, time.perf_counter() - began, **found)


HEADER = ("change", "split", "merge", "VOI", "ratio", "ARAND", "options")


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Format lines of the table; the ratio is VOI relative to that of the unchanged sections."""
    base = next((row["voi"] for row in found if row["change"] == "unchanged"), None)
    lines = []
    for row in found:
        if row["voi"] is None:
            lines.append([row["change"], *["-"] * 5, row["refused"]])
            continue
        numbers = [f"{row[key]:.3f}" for key in ("voi_split", "voi_merge", "voi")]
        ratio = f"{row['voi'] / base:.2f}" if base else "-"
        lines.append([row["change"], *numbers, ratio, f"{row['arand']:.3f}", " ".join(row["options"]) or "-"])
    return lines


def _span(text: str | None, size: int) -> tuple[int, int]:
    first, _, last = (text or ":").partition(":")
    try:
        return int(first or 0), int(last or size)
    except ValueError:
        raise DistillError(f"--sections, --box: found {text!r}, expected FIRST:LAST such as 60:68") from None


def _digest(model: str) -> str:
    return hashlib.sha256(find_weights(model, "student").read_bytes()).hexdigest()[:16]


def _box(text: str) -> tuple[str, str]:
    y, comma, x = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected Y:Y,X:X such as 512:1024,512:1024")
    return y, x


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", metavar="VOLUME", help="uint8 sections with a resolution")
    parser.add_argument("labels", metavar="LABELS", help="ground truth of the same shape")
    parser.add_argument("--model", required=True, help="as distill stream takes it")
    parser.add_argument("--sections", metavar="FIRST:LAST", help="default all")
    parser.add_argument("--box", type=_box, default=(":", ":"), metavar="Y:Y,X:X", help="rows and columns; default all")
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help=f"some of: {', '.join(CHANGES)}")
    rows.add_options(parser, what="rows", method="query")
    return parser


if __name__ == "__main__":
    sys.exit(main())
