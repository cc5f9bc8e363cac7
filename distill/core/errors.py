"""Errors caused by invalid input; every other exception is a defect of the package.

The command line prints the message of a `DistillError` as one line and exits with 2. A message therefore names the
file, key or argument, what was found and what was expected.
"""


class DistillError(ValueError):
    """Base of all errors that a user can correct."""


class SourceError(DistillError):
    """A volume, dataset or section that cannot be opened, read or written."""


class ConfigError(DistillError):
    """A configuration file or override that is not valid."""


class CheckpointError(DistillError):
    """A weights file or run folder that is unreadable or does not match."""


class ShapeError(DistillError):
    """Arrays whose shapes, types or resolutions do not match."""


class DecoderError(SourceError):
    """A file whose compression needs a package that is not installed: not the fault of the file."""
