"""Adapt a model's normalisation to the grey values of a source."""

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
    """User options for the grey values of a source."""

    normalise: str | None = None  # kind of normalisation; None = the model's own
    invert: bool = False  # whether dark and bright are exchanged in the source


AS_RECORDED = GreyValues()


def normaliser_of(trained: TrainedStudent | TrainedTeacher, grey: GreyValues) -> Normaliser:
    """Choose what normalises the sections of a source for a model.

    Args:
        trained: the model.
        grey: what the user wants.

    Raises:
        DistillError: an unknown kind of normalisation.
    """
    return source_normaliser(trained.normaliser, grey.normalise, invert=grey.invert)


def check_grey(normaliser: Normaliser, dtype: np.dtype[Any], source: str, note: Callable[[str], None]) -> None:
    """Check that the pixels of a source can be normalised, and report changes of their grey values.

    Args:
        normaliser: of the source.
        dtype: of its pixels.
        source: for messages.
        note: called with a message if grey values are changed.

    Raises:
        SourceError: the type of the pixels cannot be normalised.
    """
    try:
        normaliser.check(dtype)
    except ShapeError as error:
        raise SourceError(f"{source}: {error}") from None
    if normaliser.normalisation.kind != "none" or normaliser.invert:
        inverted = "; dark and bright exchanged" if normaliser.invert else ""
        note(f"grey values: {normaliser.normalisation}{inverted}")


def grey_settings(normaliser: Normaliser) -> dict[str, Any]:
    """Return the normalisation for a store's settings; empty if values are only divided by the type's range.

    Stores written before normalisation existed have no such settings either, and can be resumed.
    """
    if normaliser == UNCHANGED:
        return {}
    return {"normalisation": normaliser.normalisation.model_dump(mode="json"), "invert": normaliser.invert}
