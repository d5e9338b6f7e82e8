"""UDP datagrams out of packet captures: classic pcap and pcapng, with IPv4 fragments put together again.

Formats: draft-ietf-opsawg-pcap (classic, micro- and nanosecond magics, both byte orders),
draft-ietf-opsawg-pcapng (section, interface, enhanced, simple and obsolete packet blocks). IP: RFC 791, 8200.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sensorium.errors import SourceError
from sensorium.timebase import SECOND_NS

_CLASSIC_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_SECTION = b"\x0a\x0d\x0d\x0a"
_MAX_PACKET_BYTES = 1 << 20
_MAX_DATAGRAM_BYTES = 65535
_MAX_OPEN_DATAGRAMS = 256  # fragments of one datagram come back to back; older ones will never be complete
_UDP = 17

# Link types (tcpdump.org/linktypes.html): where the network header begins.
_NULL, _ETHERNET, _RAW_OLD, _RAW, _LOOP, _LINUX_SLL, _IPV4, _IPV6, _LINUX_SLL2 = (
    0,
    1,
    12,
    101,
    108,
    113,
    228,
    229,
    276,
)
_VLAN_TAGS = (0x8100, 0x88A8, 0x9100)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram; ``arrival_ns`` is UTC nanoseconds of its last fragment."""

    arrival_ns: int
    source_port: int
    port: int
    payload: bytes


@dataclass(slots=True)
class CaptureCounts:
    """What a pass over a capture met besides whole datagrams."""

    packets: int = 0
    cut: int = 0
    incomplete: int = 0
    is_truncated: bool = False


def read_datagrams(path: Path, counts: CaptureCounts) -> Iterator[Datagram]:
    """Yield the UDP datagrams of a capture in file order; a torn end is counted, not raised.

    Args:
        counts: Filled during the pass: packets cut by the capture's snap length, datagrams with fragments
            missing, whether the file ends inside a packet.

    Raises:
        SourceError: If the file is no capture, or of a link type that carries no IP.
    """
    reassembly = _Reassembly(counts)
    try:
        with path.open("rb") as file:
            for arrival_ns, link, packet in _read_packets(file, path, counts):
                counts.packets += 1
                datagram = reassembly.take(arrival_ns, link, packet)
                if datagram is not None:
                    yield datagram
    except OSError as err:
        raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
    counts.incomplete += reassembly.open_datagrams


def _read_packets(file: BinaryIO, path: Path, counts: CaptureCounts) -> Iterator[tuple[int, int, bytes]]:
    magic = file.read(4)
    if magic == _SECTION:
        yield from _read_blocks(file, path, counts)
    elif magic in _CLASSIC_MAGICS:
        yield from _read_classic(file, path, counts, *_CLASSIC_MAGICS[magic])
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
        yield seconds * SECOND_NS + fraction * tick_ns, link, packet


def _read_blocks(file: BinaryIO, path: Path, counts: CaptureCounts) -> Iterator[tuple[int, int, bytes]]:
    """Yield the packets of a pcapng file; simple packet blocks carry no time and are skipped as cut."""
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
            counts.cut += 1


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
    if link not in (_NULL, _ETHERNET, _RAW_OLD, _RAW, _LOOP, _LINUX_SLL, _IPV4, _IPV6, _LINUX_SLL2):
        raise SourceError(
            f"{path}: link type {link} is not supported; capture on Ethernet, loopback or 'any'"
        )


class _Reassembly:
    """Turns link-layer packets into UDP datagrams."""

    def __init__(self, counts: CaptureCounts) -> None:
        self._counts = counts
        self._open: OrderedDict[bytes, _Fragments] = OrderedDict()

    @property
    def open_datagrams(self) -> int:
        return len(self._open)

    def take(self, arrival_ns: int, link: int, packet: bytes) -> Datagram | None:
        try:
            network = packet[_network_offset(link, packet) :]
            version = network[0] >> 4 if network else 0
            if version == 4:
                return self._take_ipv4(arrival_ns, network)
            if version == 6 and network[6] == _UDP:
                return _udp(arrival_ns, network[40 : 40 + struct.unpack_from(">H", network, 4)[0]])
        except (struct.error, IndexError):
            self._counts.cut += 1
        return None

    def _take_ipv4(self, arrival_ns: int, network: bytes) -> Datagram | None:
        header_bytes = (network[0] & 0x0F) * 4
        total, key_id, fragment = struct.unpack_from(">HHH", network, 2)
        if network[9] != _UDP:
            return None
        # A total of 0 is what a capture below segmentation offload shows: the packet's own length holds.
        data = network[header_bytes : total or None]
        more, offset = bool(fragment & 0x2000), (fragment & 0x1FFF) * 8
        if not more and offset == 0:
            return _udp(arrival_ns, data)
        key = network[12:20] + key_id.to_bytes(2, "big")
        fragments = self._open.setdefault(key, _Fragments())
        whole = fragments.add(offset, data, more)
        if whole is None:
            if len(self._open) > _MAX_OPEN_DATAGRAMS:
                self._open.popitem(last=False)
                self._counts.incomplete += 1
            return None
        del self._open[key]
        return _udp(arrival_ns, whole)


class _Fragments:
    """The pieces of one IPv4 datagram (RFC 791, 3.2), in whatever order they come."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._size: int | None = None

    def add(self, offset: int, data: bytes, more: bool) -> bytes | None:
        """Return the whole once every byte is there."""
        if offset + len(data) > _MAX_DATAGRAM_BYTES:
            return None
        self._pieces[offset] = data
        if not more:
            self._size = offset + len(data)
        if self._size is None:
            return None
        whole = bytearray()
        for start in sorted(self._pieces):
            if start > len(whole):
                return None
            whole[start:] = self._pieces[start]
        return bytes(whole) if len(whole) == self._size else None


def _udp(arrival_ns: int, segment: bytes) -> Datagram | None:
    source_port, port, length = struct.unpack_from(">HHH", segment)
    # Length 0 stands for "larger than the field can say" in offloaded captures.
    payload = segment[8 : length or None]
    return (
        Datagram(arrival_ns, source_port, port, payload)
        if len(payload) == max(0, (length or len(segment)) - 8)
        else None
    )


def _network_offset(link: int, packet: bytes) -> int:
    if link == _ETHERNET:
        at = 12
        while struct.unpack_from(">H", packet, at)[0] in _VLAN_TAGS:
            at += 4
        is_ip = struct.unpack_from(">H", packet, at)[0] in (0x0800, 0x86DD)
        return at + 2 if is_ip else len(packet)
    return {_NULL: 4, _LOOP: 4, _LINUX_SLL: 16, _LINUX_SLL2: 20}.get(link, 0)
