"""Whether all pixels of an encoded image are in its bytes: what decoders fill up with grey or black, and only warn of.

PNG: the rows that the compressed stream holds are counted. JPEG: libjpeg's warnings do not reach us, so the image is
decoded again, at an eighth of its size, with other bytes behind what is coded and in place of its end. Bytes behind the
code must not matter (else the decoder has run out of code), the last ones of the code must (else code is left over,
which means that its middle is damaged).
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator

from PIL.JpegImagePlugin import JpegImageFile

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG, by colour type
# Adam7: (first column, first row, step in columns, step in rows)
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_AT_ONCE = 2**20  # bytes

_OTHER = bytes(range(17, 251, 3)) * 2  # some bytes without 0xff, to be put where none or others are
_LEFT_OVER = 64  # bytes of code that may be left over: cameras leave a few
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")


def missing(data: bytes) -> str | None:
    """What is wrong with an image that can be decoded, or None if all of it is there."""
    if data.startswith(b"\x89PNG"):
        return _missing_rows(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _missing_blocks(data)
    return None


def _missing_rows(data: bytes) -> str | None:
    width, height, depth, colour, _, _, interlaced = struct.unpack(">2I5B", data[16:29])
    bits = depth * _CHANNELS[colour]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    expected = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    stream, count = zlib.decompressobj(), 0
    for part in _compressed(data):
        count += len(stream.decompress(part, _AT_ONCE))
        while stream.unconsumed_tail and count < expected:
            count += len(stream.decompress(stream.unconsumed_tail, _AT_ONCE))
    if count < expected:
        return f"it is incomplete: {count} bytes of pixels, not {expected}"
    return None


def _compressed(data: bytes) -> Iterator[bytes]:
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            yield data[place + 8 : place + 8 + length]
        place += 12 + length


def _missing_blocks(data: bytes) -> str | None:
    scans, baseline, intervals, flat = _scans(data)
    if not scans:
        return "it has no picture"
    plain = _decoded(data, small=baseline)
    for begin, end in scans:
        code, restarts = _RESTART.subn(lambda match: _OTHER + match[0], data[begin:end])
        if _decoded(data[:begin] + code + _OTHER + data[end:], small=baseline) != plain:
            return "it is incomplete: its code ends before its last pixel"
        if bytes(16 if baseline else 64) in data[begin:end] and not flat:
            return "it is damaged: a part of its code is zeros"
    begin, end = scans[-1]
    if baseline and intervals and len(scans) == 1 and restarts + 1 != intervals:
        return f"it is damaged: its code has {restarts + 1} parts between marks, not {intervals}"
    if baseline and end - begin >= 4 * _LEFT_OVER:
        other = data[: end - _LEFT_OVER] + _OTHER[:_LEFT_OVER] + data[end:]
        if _decoded(other, small=True) == plain and _decoded(other, small=False) == _decoded(data, small=False):
            return "it is damaged: code is left over behind its last pixel"
    return None


def _scans(data: bytes) -> tuple[list[tuple[int, int]], bool, int, bool]:
    """Where the code of each scan lies; whether the image is baseline; intervals between restart marks that a single
    scan has (0: no marks); whether zeros stand for flat blocks, so that there may be many.
    """
    scans: list[tuple[int, int]] = []
    frame, every, zeros = b"", 0, dict[int, int]()
    baseline = False
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        kind = data[place + 1]
        if kind == 0xD9:
            break
        if kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD8:
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4])
        body = data[place + 4 : place + 2 + length]
        place += 2 + length
        if 0xC0 <= kind <= 0xC2:
            frame, baseline = body, kind != 0xC2
        elif kind == 0xC4:
            zeros |= dict(_shortest(body))
        elif kind == 0xDD:
            every = int.from_bytes(body)
        elif kind == 0xDA:
            match = _MARKER.search(data, place)
            end = match.start() if match else len(data)
            scans.append((place, end))
            place = end
    dc = [symbol == 0 for table, symbol in zeros.items() if table < 0x10]
    ac = [symbol % 16 == 0 and symbol != 0xF0 for table, symbol in zeros.items() if table >= 0x10]
    flat = all(dc + ac) if baseline and len(scans) == 1 else any(dc + ac)
    return scans, baseline, -(-_units(frame) // every) if every else 0, flat


def _units(frame: bytes) -> int:
    """Units that an interval counts: blocks for one component, else squares of some blocks of each."""
    height, width, components = struct.unpack(">2HB", frame[1:6])
    factors = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * components : 3]] if components > 1 else [(1, 1)]
    columns, rows = (8 * max(each) for each in zip(*factors, strict=True))
    return int(-(-width // columns) * -(-height // rows))


def _shortest(tables: bytes) -> Iterator[tuple[int, int]]:
    """(table, the symbol whose code is all zeros) of the Huffman tables in a segment; those of AC begin at 0x10."""
    while len(tables) > 17:
        yield tables[0], tables[17]
        tables = tables[17 + sum(tables[1:17]) :]


def _decoded(data: bytes, small: bool) -> bytes:
    """The picture, or an eighth of its size, which shows most of a baseline's code."""
    image = JpegImageFile(io.BytesIO(data))
    if small:
        image.draft(image.mode, (1, 1))
    try:
        return image.tobytes()
    except OSError:
        return b""
