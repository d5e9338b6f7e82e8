"""UDP datagrams out of packet captures: classic pcap and pcapng, with IP fragments put together again.

Formats: draft-ietf-opsawg-pcap (classic, micro- and nanosecond magics, both byte orders),
draft-ietf-opsawg-pcapng (section, interface, enhanced, simple and obsolete packet blocks).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sensorium.errors import SourceError
from sensorium.sync.sources.ip_packets import LINKS, CaptureCounts, Datagram, Reassembly
from sensorium.timebase import SECOND_NS

_CLASSIC_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_SECTION = b"\x0a\x0d\x0d\x0a"
_MAX_PACKET_BYTES = 1 << 20


def read_datagrams(path: Path, counts: CaptureCounts, tick_ns: int | None = None) -> Iterator[Datagram]:
    """Yield the UDP datagrams of a capture in file order; a torn end is counted, not raised.

    Args:
        counts: Filled during the pass: packets cut by the capture's snap length, datagrams with fragments
            missing, whether the file ends inside a packet.
        tick_ns: What a fraction of a second of a classic capture counts; None = what the file says.

    Raises:
        SourceError: If the file is no capture, or of a link type that carries no IP.
    """
    reassembly = Reassembly(counts)
    try:
        with path.open("rb") as file:
            for arrival_ns, link, packet in _read_packets(file, path, counts, tick_ns):
                counts.packets += 1
                datagram = reassembly.take(arrival_ns, link, packet)
                if datagram is not None:
                    yield datagram
    except OSError as err:
        raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
    counts.incomplete += reassembly.open_datagrams


def _read_packets(
    file: BinaryIO, path: Path, counts: CaptureCounts, tick_ns: int | None
) -> Iterator[tuple[int, int, bytes]]:
    magic = file.read(4)
    if magic == _SECTION:
        yield from _read_blocks(file, path, counts)
    elif magic in _CLASSIC_MAGICS:
        order, counts.tick_ns = _CLASSIC_MAGICS[magic]
        yield from _read_classic(file, path, counts, order, tick_ns or counts.tick_ns)
    else:
        raise SourceError(f"{path}: begins with {magic!r}, neither pcap nor pcapng")


def _read_classic(
    file: BinaryIO, path: Path, counts: CaptureCounts, order: str, tick_ns: int
) -> Iterator[tuple[int, int, bytes]]:
    header = file.read(20)
    if len(header) < 20:
        raise SourceError(f"{path}: ends inside the file header of a pcap")
    link = (
        struct.unpack_from(order + "I", header, 16)[0] & 0xFFFF
    )  # the upper bits describe a frame check sequence
    _require_ip(path, link)
    record = struct.Struct(order + "IIII")
    while head := file.read(record.size):
        if len(head) < record.size:
            counts.is_truncated = True
            return
        seconds, fraction, kept, original = record.unpack(head)
        packet = file.read(kept) if kept <= _MAX_PACKET_BYTES else b""
        if len(packet) < kept:
            counts.is_truncated = True
            return
        if kept < original:
            counts.cut += 1
            continue
        counts.largest_fraction = max(counts.largest_fraction, fraction)
        yield seconds * SECOND_NS + fraction * tick_ns, link, packet


def _read_blocks(file: BinaryIO, path: Path, counts: CaptureCounts) -> Iterator[tuple[int, int, bytes]]:
    """Yield the packets of a pcapng file; simple packet blocks carry no time and are counted only."""
    file.seek(0)
    order = "<"
    interfaces: list[tuple[int, int, int]] = []  # link type, ticks per second, offset in seconds
    while head := file.read(8):
        if len(head) == 8 and head[:4] == _SECTION:
            mark = file.read(4)
            order = "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"
            file.seek(-len(mark), 1)
            interfaces = []
        block, length = struct.unpack(order + "II", head) if len(head) == 8 else (0, 0)
        if not 12 <= length <= _MAX_PACKET_BYTES + 64:
            counts.is_truncated = True
            return
        body = file.read(length - 8)
        if len(body) < length - 8:
            counts.is_truncated = True
            return
        if block == 1 and length >= 20:
            interface = _interface(body, order)
            _require_ip(path, interface[0])
            interfaces.append(interface)
        elif block in (2, 6) and length >= 32:
            shape = "HHIIII" if block == 2 else "IIIII"
            fields = struct.unpack_from(order + shape, body)
            kept, original = fields[-2:]
            if fields[0] >= len(interfaces) or kept < original or 20 + kept > len(body) - 4:
                counts.cut += 1
                continue
            link, rate, offset_s = interfaces[fields[0]]
            ticks = (fields[-4] << 32) | fields[-3]
            arrival_ns = offset_s * SECOND_NS + ticks * SECOND_NS // rate
            if not 0 <= arrival_ns < 1 << 63:
                counts.cut += 1
                continue
            yield arrival_ns, link, body[20 : 20 + kept]
        elif block == 3:
            counts.untimed += 1


def _interface(body: bytes, order: str) -> tuple[int, int, int]:
    link = struct.unpack_from(order + "H", body)[0]
    rate, offset_s, at = 1_000_000, 0, 8
    while at + 4 <= len(body) - 4:
        code, length = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + length]
        if code == 0:
            break
        if code == 9 and length == 1:  # if_tsresol: a power of ten, or of two when the top bit is set
            rate = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == 14 and length == 8:  # if_tsoffset
            offset_s = struct.unpack(order + "q", value)[0]
        at += 4 + (length + 3) // 4 * 4
    return link, rate, offset_s


def _require_ip(path: Path, link: int) -> None:
    if link not in LINKS:
        raise SourceError(
            f"{path}: link type {link} is not supported; capture on Ethernet, loopback or 'any'"
        )
