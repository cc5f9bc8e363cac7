"""Fit a model's normalisation to the grey values of a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.core.errors import ShapeError, SourceError
from distill.core.normalisation import UNCHANGED, Normaliser, source_normaliser
from distill.models.load import TrainedStudent, TrainedTeacher


@dataclass(frozen=True)
class GreyValues:
    """How the user wants the grey values of a source taken."""

    normalise: str | None = None  # kind of normalisation; None = the model's own
    invert: bool = False  # dark and bright are exchanged in the source


AS_RECORDED = GreyValues()


def normaliser_of(trained: TrainedStudent | TrainedTeacher, grey: GreyValues, inverted: bool) -> Normaliser:
    """Choose what normalises the sections of a source for a model.

    Args:
        trained: the model.
        grey: what the user wants.
        inverted: whether the source's own metadata exchange dark and bright.

    Raises:
        DistillError: an unknown kind of normalisation.
    """
    return source_normaliser(trained.normaliser, grey.normalise, invert=grey.invert != inverted)


def check_grey(normaliser: Normaliser, dtype: np.dtype[Any], source: str, note: Callable[[str], None]) -> None:
    """Refuse a source whose pixels the normalisation cannot bring to a scale, and name what is done to the others.

    Args:
        normaliser: of the source.
        dtype: of its pixels.
        source: for messages.
        note: called with a line where grey values are changed.

    Raises:
        SourceError: pixels of such a type.
    """
    try:
        normaliser.check(dtype)
    except ShapeError as error:
        raise SourceError(f"{source}: {error}") from None
    if normaliser.normalisation.kind != "none" or normaliser.invert:
        inverted = "; dark and bright exchanged" if normaliser.invert else ""
        note(f"grey values: {normaliser.normalisation}{inverted}")


def grey_settings(normaliser: Normaliser) -> dict[str, Any]:
    """Record how grey values are normalised in a store's settings; nothing where only the type's range is divided out.

    Stores from before there was a normalisation have no such settings either, and resume.
    """
    if normaliser == UNCHANGED:
        return {}
    return {"normalisation": normaliser.normalisation.model_dump(mode="json"), "invert": normaliser.invert}
