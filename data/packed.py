"""Packed files: what their first bytes say they are, and their content as far as it can be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_PIECE_BYTES = 1 << 14  # Arrow drops what it has unpacked of the piece in which a file breaks
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError)


class BrokenPackError(OSError):
    """A packed file that ends early (`early`) or is corrupt; what stands before was read."""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(str(error))
        self.early = isinstance(error, EOFError) or "Truncated" in str(error)
        self.what = f"{kind} ends early" if self.early else f"corrupt {kind}"


@dataclass(frozen=True, slots=True)
class Packing:
    """A way to pack one file; `unpack` gives its content, which is read by `read1`."""

    name: str
    suffix: str
    starts: re.Pattern[bytes]
    unpack: Callable[[BinaryIO], Any]


class _ArrowStream:
    """Content that Arrow unpacks, frame after frame."""

    def __init__(self, packed: BinaryIO, codec: str) -> None:
        import pyarrow as pa

        self._content = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), codec)

    def read1(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        return bytes(self._content.read(min(size, _PIECE_BYTES)))

    def close(self) -> None:
        """The packed file is closed by who opened it."""


PACKINGS = (
    Packing("gzip", ".gz", re.compile(rb"\x1f\x8b"), lambda packed: gzip.GzipFile(fileobj=packed)),
    Packing("zstd", ".zst", re.compile(rb"\x28\xb5\x2f\xfd"), lambda p: _ArrowStream(p, "zstd")),
    Packing("xz", ".xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMAFile),
    # after its level: pi, or the root of it where the file is empty
    Packing("bzip2", ".bz2", re.compile(rb"BZh[1-9](1AY|\x17rE)"), bz2.BZ2File),
    Packing("lz4", ".lz4", re.compile(rb"\x04\x22\x4d\x18"), lambda p: _ArrowStream(p, "lz4")),
)
SUFFIXES = tuple(packing.suffix for packing in PACKINGS)


def packing_of(head: bytes) -> Packing | None:
    """How a file that begins so is packed; None where it is not."""
    return next((packing for packing in PACKINGS if packing.starts.match(head)), None)


def is_packed(path: Path) -> bool:
    """Whether a file is packed, whatever it is called."""
    with path.open("rb") as file:
        return packing_of(file.read(16)) is not None


def unpacked_name(name: str) -> str:
    """A file's name without what says that it is packed."""
    return next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)


class Unpacked(io.RawIOBase):
    """A packed file's content: all that can be read before a break comes before the error."""

    def __init__(self, packed: BinaryIO, packing: Packing) -> None:
        self._packed, self._kind = packed, packing.name
        self._content = packing.unpack(packed)

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """What comes next, as much as there is at once; BrokenPackError where it breaks."""
        try:
            piece = self._content.read1(len(buffer))  # read would drop what it has at a break
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's
            raise BrokenPackError(self._kind, error) from error
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """The packed file too."""
        if not self.closed:
            super().close()
            self._content.close()
            self._packed.close()
