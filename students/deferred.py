"""A student that is built when its network is first needed.

A runtime that finds its models in the cache needs only the form of the network. Building it takes seconds for encoders
of segmentation-models-pytorch, most of them for imports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

from students.student import Student


@dataclass(frozen=True)
class StudentForm:
    """What is known of a network without building it; see `Student`."""

    stride: int
    half_channels: int
    full_channels: int
    embedding_channels: int
    aligned_levels: int
    entry: str | None

    @classmethod
    def of(cls, student: Student) -> StudentForm:
        """Describe a network."""
        return cls(
            student.stride,
            student.half_channels,
            student.full_channels,
            student.embedding_channels,
            student.aligned_levels,
            student.entry,
        )

    def to_dict(self) -> dict[str, int | str | None]:
        """Return the values by name."""
        return asdict(self)


class DeferredStudent:
    """A trained student of a weights file, built at its first use."""

    def __init__(self, build: Callable[[], Student], digest: str, form: StudentForm) -> None:
        """Remember how it is built.

        Args:
            build: returns the network in evaluation mode.
            digest: SHA-256 of its weights file.
            form: of the network.
        """
        self._build, self.digest, self.form = build, digest, form

    @cached_property
    def student(self) -> Student:
        """Return the network."""
        return self._build()


def form_of(student: Student | DeferredStudent) -> StudentForm:
    """Return the form of a network without building it."""
    return student.form if isinstance(student, DeferredStudent) else StudentForm.of(student)


def network_of(student: Student | DeferredStudent) -> Student:
    """Return the network, which is built if it has not been yet."""
    return student.student if isinstance(student, DeferredStudent) else student
