"""Write HDF5 files so that a disk that is full, or a quota, is an ordinary error.

HDF5 keeps what it could not write and tries again when the file is closed and when the process ends, where it crashes.
The file is therefore written through an object that takes everything, keeps the first error, and raises it as soon as
the library is out of the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal


class _Kept:
    """A binary file that keeps the first error of a write instead of raising it."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        if self.error is None:
            try:
                return self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size or 0

    def flush(self) -> None:
        if self.error is None:
            try:
                self._file.flush()
            except OSError as error:
                self.error = error

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        found: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.error is not None:
            raise self.error


@contextmanager
def written_hdf5(path: Path, mode: Literal["a", "w"]) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Open an HDF5 file for writing.

    Args:
        path: the file.
        mode: `a` to add to a file that is there, `w` for a new one.

    Yields:
        The file, and a function that raises the first error of a write; to be called now and then in long work.

    Raises:
        OSError: a write failed; at the latest when the block ends.
    """
    import h5py

    with path.open("r+b" if mode == "a" and path.exists() else "w+b", buffering=0) as raw:
        kept = _Kept(raw)
        try:
            with h5py.File(kept, mode) as file:
                yield file, kept.check
        except BaseException:
            kept.check()
            raise
        kept.check()
