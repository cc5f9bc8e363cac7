"""The errors that a user can cause and mend; everything else is a defect of ours.

The command line prints the message of a `DistillError` as one line and exits with 2. A message therefore names the
file, key or argument, says what was found and what was expected.
"""


class DistillError(ValueError):
    """Base of every error that a user can mend."""


class SourceError(DistillError):
    """A volume, dataset or section that cannot be opened, read or written."""


class ConfigError(DistillError):
    """A configuration file or override that is not valid."""


class CheckpointError(DistillError):
    """A weights file or run folder that does not fit."""


class ShapeError(DistillError):
    """Arrays whose shapes, types or resolutions do not go together."""
