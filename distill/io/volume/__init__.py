"""Volumes: open them, read them, cut parts out of them."""

from distill.io.volume.ids import RESERVED_IDS
from distill.io.volume.opening import (
    LABELS_DATASET,
    RAW_DATASET,
    MissingParts,
    open_grey,
    open_labels,
    open_volume,
)
from distill.io.volume.parts import (
    check_pair,
    every_section,
    on_grid,
    one_channel,
    part,
    some_sections,
    voxel_shift,
)
from distill.io.volume.volume import NO_RESOLUTION, Volume, checked_offset, checked_resolution, volume_from_array

__all__ = [
    "LABELS_DATASET",
    "NO_RESOLUTION",
    "RAW_DATASET",
    "RESERVED_IDS",
    "MissingParts",
    "Volume",
    "check_pair",
    "checked_offset",
    "checked_resolution",
    "every_section",
    "on_grid",
    "one_channel",
    "open_grey",
    "open_labels",
    "open_volume",
    "part",
    "some_sections",
    "volume_from_array",
    "voxel_shift",
]
