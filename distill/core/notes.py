"""Report once how ambiguous input was interpreted, and count what was read as something else.

Readers log to `distill.input`; the command line shows each line once. A library's user sees them with
`logging.basicConfig(level=logging.INFO)`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

Note = Callable[[str], None]  # called with lines for the user

LOGGER = logging.getLogger("distill.input")
LOGGER.addHandler(logging.NullHandler())
LOGGER.setLevel(logging.INFO)


def note(text: str) -> None:
    """Report a decision that the metadata of a file left open."""
    LOGGER.info(text)


def warn(text: str) -> None:
    """Report input that is probably not what was meant."""
    LOGGER.warning(text)


def count(text: str, number: int, part: Hashable) -> None:
    """Add to a total that is reported at the end of a command.

    Args:
        text: what is counted, with `{}` in place of the total.
        number: of this part.
        part: what was looked at; a part that is read again is not counted again.
    """
    LOGGER.info(text, extra={"counted": (number, part)})


class Lines(logging.Handler):
    """Show every line once, and totals when `finish` is called."""

    def __init__(self, show: Callable[[str], None]) -> None:
        """Start without lines.

        Args:
            show: called with each line.
        """
        super().__init__()
        self._show = show
        self._shown: set[str] = set()
        self._totals: dict[str, dict[Hashable, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line, or keep its number for the total."""
        text = record.getMessage()
        counted = getattr(record, "counted", None)
        if counted is not None:
            number, part = counted
            self._totals.setdefault(text, {})[part] = number
        elif text not in self._shown:
            self._shown.add(text)
            self._show(f"warning: {text}" if record.levelno >= logging.WARNING else f"note: {text}")

    def finish(self) -> None:
        """Show the totals."""
        totals, self._totals = self._totals, {}
        for text, parts in totals.items():
            if total := sum(parts.values()):
                self._show(f"note: {text.replace('{}', f'{total:,}')}")
