# SPDX-License-Identifier: Apache-2.0
"""What the structure of an image file says: whether the file is complete, and how many scans a JPEG has.

Reading the structure is a hundred times faster than decoding. Only "complete" is proof; otherwise the image must be
decoded, because some programs leave out file ends that decoders ignore.
"""

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image

PNG_TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # after the pixels they may still hold an orientation
BLOCK = 1 << 16
TIFF_STARTS, TIFF_SIZES = (273, 324), (279, 325)  # tags of strips and of tiles
SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"  # markers; in the data of a scan neither can occur


def is_whole(image: Image.Image, stream: BinaryIO) -> bool:
    """Check whether the structure of a file proves that its first picture is complete.

    Args:
        image: as Pillow opened it, not decoded.
        stream: the file; its position is restored.
    """
    check = _CHECKS.get(image.format or "")
    if check is None:
        return False
    position = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    try:
        return check(image, stream, end)
    finally:
        stream.seek(position)


def _png(image: Image.Image, stream: BinaryIO, end: int) -> bool:
    at, pixels = 8, False
    while at + 12 <= end:
        stream.seek(at)
        length, kind = struct.unpack(">I4s", stream.read(8))
        at += 12 + length
        if kind == b"IEND":
            return at <= end
        if pixels and kind in PNG_TEXTS:
            return False
        pixels |= kind == b"IDAT"
    return False


def jpeg_scans(stream: BinaryIO) -> int:
    """Count the scans of the first picture in a JPEG file.

    Args:
        stream: the file; its position is restored.
    """
    position = stream.tell()
    try:
        start = _first_scan(stream, stream.seek(0, os.SEEK_END))
        return 0 if start is None else 1 + _search(stream, start)[1]
    finally:
        stream.seek(position)


def _jpeg(image: Image.Image, stream: BinaryIO, end: int) -> bool:
    start = _first_scan(stream, end)
    return start is not None and _search(stream, start)[0]


def _first_scan(stream: BinaryIO, end: int) -> int | None:
    """Position after the header of the first scan."""
    at = 2
    while at + 4 <= end:
        stream.seek(at)
        marker, kind, length = struct.unpack(">BBH", stream.read(4))
        if marker != 0xFF:
            return None
        if kind == 0xFF:  # fill
            at += 1
            continue
        at += 2 + length
        if kind == SCAN[1]:
            return at
    return None


def _search(stream: BinaryIO, start: int) -> tuple[bool, int]:
    """Whether an end of image follows `start`, and the number of scans before it."""
    stream.seek(start)
    tail, scans = b"", 0
    while block := stream.read(BLOCK):
        block = tail + block
        at = block.find(END_OF_IMAGE)
        scans += block.count(SCAN, 0, at if at >= 0 else len(block))
        if at >= 0:
            return True, scans
        tail = block[-1:] if block.endswith(b"\xff") else b""
    return False, scans


def _gif(image: Image.Image, stream: BinaryIO, end: int) -> bool:
    """The blocks of a picture end with an empty one."""
    stream.seek(10)
    flags = stream.read(1)[0]
    at = 13 + (3 << 1 + (flags & 7) if flags & 0x80 else 0)
    while at < end:
        stream.seek(at)
        kind = stream.read(1)
        if kind == b"!":  # an extension: a label, and blocks
            at = _after_blocks(stream, at + 2)
        elif kind == b",":
            flags = stream.read(9)[-1]
            at += 11 + (3 << 1 + (flags & 7) if flags & 0x80 else 0)
            return _after_blocks(stream, at) <= end
        else:
            return False
    return False


def _after_blocks(stream: BinaryIO, at: int) -> int:
    """Where a chain of blocks ends; each starts with its length, and the last one is empty."""
    while True:
        stream.seek(at)
        length = stream.read(1)
        if not length:
            return at + 1  # beyond the end of the file
        at += 1 + length[0]
        if length == b"\0":
            return at


def _webp(image: Image.Image, stream: BinaryIO, end: int) -> bool:
    stream.seek(4)
    return 8 + int.from_bytes(stream.read(4), "little") <= end


def _bmp(image: Image.Image, stream: BinaryIO, end: int) -> bool:
    """Uncompressed rows, each padded to 4 bytes, follow one another to the end."""
    stream.seek(10)
    offset = int.from_bytes(stream.read(4), "little")
    stream.seek(28)
    bits, compression = struct.unpack("<HI", stream.read(6))
    return compression in (0, 3) and offset + (image.width * bits + 31) // 32 * 4 * image.height <= end


def _tiff(image: Image.Image, stream: BinaryIO, end: int) -> bool:
    tags = image.tag_v2  # type: ignore[attr-defined]
    starts = next((tags[tag] for tag in TIFF_STARTS if tag in tags), ())
    sizes = next((tags[tag] for tag in TIFF_SIZES if tag in tags), ())
    return 0 < len(starts) == len(sizes) and max(map(sum, zip(starts, sizes, strict=True))) <= end


_CHECKS: dict[str, Callable[[Image.Image, BinaryIO, int], bool]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "MPO": _jpeg,
    "GIF": _gif,
    "WEBP": _webp,
    "BMP": _bmp,
    "TIFF": _tiff,
}
