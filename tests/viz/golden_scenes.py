"""One of each figure, of made content that never changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from distill.core.geometry import Box
from distill.evaluation.contingency import Contingency
from distill.evaluation.metrics import worst_objects
from distill.evaluation.partners import main_partners
from distill.evaluation.seams.border import seam_profile, seam_score
from viz.charts import RunScore, SweepPoint, build_ablation_figure, build_sweep_figure
from viz.curves import build_curves_figure
from viz.embeddings.draw import Panel, build_pca_figure
from viz.embeddings.insets import Inset
from viz.embeddings.movie import MovieFrames
from viz.errors.figure import WrongObject, build_errors_figure
from viz.gallery.figure import Example, build_gallery_figure
from viz.meshes.figure import DrawnObject, Neuron, build_meshes_figure
from viz.meshes.raster import Solid, View, surface
from viz.section import build_section_figure

DPI = 100
NM = 6.0  # per voxel along y and x
SIDE = 96


def cells(side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A section of 16 rounded cells, and their ids with background between."""
    at = np.indices((side, side)) * 4 / side
    label = (at[0].astype(int) * 4 + at[1].astype(int) + 1).astype(np.uint64)
    away = np.abs(at % 1 - 0.5).max(axis=0)
    shade = 90 + 8 * (label.astype(int) * 7 % 13)
    raw = np.where(away < 0.44, shade, 30).astype(np.uint8)
    return raw, np.where(away < 0.44, label, 0).astype(np.uint64)


RAW, LABELS = cells()
WINDOWS = [48], [32, 64]


def _rgb(shift: int) -> np.ndarray:
    wave = [np.sin((np.indices((SIDE, SIDE))[k % 2] + 9 * k + shift) / 11) for k in range(3)]
    return np.rint(127.5 * (1 + np.stack(wave, axis=-1))).astype(np.uint8)


def pca() -> Figure:
    """With everything on: insets, grid, plot."""
    y, x = np.indices((SIDE, SIDE)) / 9
    embedding = np.stack([np.sin(y), np.cos(x), np.sin(x + y)]) + 0.4 * (y > 47.5 / 9)
    titles = "Teacher, 48 × 48 windows, side by side", "Student, whole section"
    panels = [Panel(t, _rgb(40 * k), f"PC1–3: {50 - k} + 20 + 9 % of variance") for k, t in enumerate(titles)]
    profile = [
        (name, seam_profile(embedding, *WINDOWS), seam_score(embedding, *WINDOWS, segment=16))
        for name in ("Teacher", "Student")
    ]
    insets = [Inset((10, 34), (20, 44)), Inset((60, 90), (50, 70))]
    says = "inside neurites", "colours and scores: pixels inside neurites"
    return build_pca_figure(RAW, panels, (NM, NM), WINDOWS, profile, DPI, insets, True, *says)


def movie() -> Figure:
    """The last of two frames."""
    frames = MovieFrames(RAW, [Panel("Student, whole section", _rgb(0))], (NM, NM), None, dpi=DPI)
    for z in (7, 8):
        frames.draw(RAW, [_rgb(z)], z)
    return frames._figure


def section() -> Figure:
    """With ground truth."""
    affinity = np.stack([np.where(LABELS > 0, 250 - 30 * k, 10) for k in range(3)]).astype(np.uint8)
    return build_section_figure(RAW, affinity, LABELS + np.uint64(40), LABELS, (NM, NM), DPI)


def curves() -> Figure:
    """Two losses and one score."""
    rows = [{"step": s, "slice loss": 2.0 / (s + 1), "cross loss": 0.5 + 0.004 * s} for s in range(0, 100, 10)]
    return build_curves_figure([*rows, *({"step": s, "student VOI": 3 - s / 50} for s in (50, 100))], DPI)


def sweep() -> Figure:
    """Two methods, thresholds chosen elsewhere."""
    points = [
        SweepPoint(method, t, shift + (1 - t) ** 2, shift + t**2, shift / 2 + (t - 0.4) ** 2)
        for method, shift in (("student + queries", 0.1), ("teacher + queries", 0.3))
        for t in (0.3, 0.5, 0.7, 0.9)
    ]
    return build_sweep_figure(points, {"student + queries": 0.5, "teacher + queries": 0.7}, DPI)


def ablation() -> Figure:
    """Three variants, two series, two scores, a baseline."""
    runs = [
        RunScore(variant, score, (1 + k / 4 + seed / 10) * scale * (2 - (series == "queries")), series)
        for k, variant in enumerate(("none", "cross", "cross + graft"))
        for seed in range(2)
        for series in ("queries", "waterz")
        for score, scale in (("voi", 0.5), ("arand", 0.05))
    ]
    return build_ablation_figure(runs, [RunScore("published", "voi", 0.9)], DPI)


def errors() -> Figure:
    """A corner split off, a cell swallowed."""
    found = np.where(LABELS > 0, LABELS + np.uint64(100), np.uint64(0))
    found[(LABELS == 6) & (np.indices(LABELS.shape)[0] > 36)] = 150
    found[LABELS == 12] = 111
    table = Contingency()
    table.add(found, LABELS)
    worst, box = worst_objects(table), Box((0, 0, 0), (1, 9, 9))
    merged = WrongObject("merge", next(o for o in worst.merged if o.id == 111), 0.1, box, 12, box)
    split = WrongObject("split", next(o for o in worst.split if o.id == 6), 0.05, box, 150, box)
    return build_errors_figure(
        RAW, LABELS, found, main_partners(table), [merged, split], (NM, NM), title="Section 7", dpi=DPI
    )


def gallery() -> Figure:
    """Two augmentations."""
    before = np.stack([RAW[:40, k : k + 50] for k in range(6)])
    examples = [Example(f"augment.key_{k}", before, before[:, ::-1] // (k + 1), 2, f"note {k}") for k in range(2)]
    return build_gallery_figure(examples, (30, NM, NM), dpi=DPI)


def meshes() -> Figure:
    """A neuron in two pieces, with something merged to it."""

    def part(label: str, colour: tuple[float, float, float], x: tuple[int, int], hatched: bool = False) -> DrawnObject:
        share = np.zeros((8, 60, 100), np.float32)
        share[2:6, 20:40, slice(*x)] = 1
        return DrawnObject(label, colour, Solid(surface(share, (30, 10, 10)), colour, hatched), hatched)

    blue, green, red = (0.0, 114.0, 178.0), (0.0, 158.0, 115.0), (213.0, 94.0, 0.0)
    pieces = part("segment 1: 60 %", green, (5, 45)), part("segment 2: 40 %", blue, (45, 75))
    merged = part("merged: 90 voxels of object 8", red, (75, 95), hatched=True)
    box = (0.0, 0.0, 0.0), (240.0, 600.0, 1000.0)
    neuron = Neuron("Neuron 7", part("object 7: 1,000 voxels", blue, (5, 75)), (*pieces, merged), box)
    return build_meshes_figure([neuron], View(tilt=0, turn=0), DPI)


# How many nm a voxel (of `meshes`: a pixel of the drawing) is wide; None = nothing is drawn to scale.
SCENES: dict[str, tuple[Callable[[], Figure], float | None]] = {
    "pca": (pca, NM),
    "movie": (movie, NM),
    "section": (section, NM),
    "errors": (errors, NM),
    "gallery": (gallery, NM),
    "meshes": (meshes, 1.04 * 1000 / 640),
    "curves": (curves, None),
    "sweep": (sweep, None),
    "ablation": (ablation, None),
}
