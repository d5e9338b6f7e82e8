"""From the packets of a link to UDP datagrams: VLAN tags, IPv4 and IPv6, fragments put together again.

Link types: tcpdump.org/linktypes.html. IP: RFC 791 (fragments: 3.2), RFC 8200 (extension headers: 4.1).
"""

import ipaddress
import struct
from collections import OrderedDict
from dataclasses import dataclass

_MAX_DATAGRAM_BYTES = 65535
_MAX_PIECES_BYTES = 2 * _MAX_DATAGRAM_BYTES  # fragments may come twice, not without end
_MAX_OPEN_DATAGRAMS = 256  # fragments of one datagram come back to back; older ones will never be complete
_MAX_TAGS = 4
_UDP = 17

_NULL, _ETHERNET, _RAW_OLD, _RAW, _LOOP = 0, 1, 12, 101, 108
_LINUX_SLL, _IPV4, _IPV6, _LINUX_SLL2 = 113, 228, 229, 276
LINKS = frozenset({_NULL, _ETHERNET, _RAW_OLD, _RAW, _LOOP, _LINUX_SLL, _IPV4, _IPV6, _LINUX_SLL2})
"""Link types whose packets can be read."""

_VLAN_TAGS = (0x8100, 0x88A8, 0x9100)
_PROTOCOL_AND_HEADER = {_ETHERNET: (12, 14), _LINUX_SLL: (14, 16), _LINUX_SLL2: (0, 20)}
"""Where the type of what follows stands in a link's header, and where that begins."""

_IPV6_OPTIONS = frozenset({0, 43, 60, 135, 139, 140})  # hop by hop, routing, destination, mobility, HIP, shim
_IPV6_FRAGMENT, _IPV6_AUTHENTICATION = 44, 51


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram; ``arrival_ns`` is UTC nanoseconds of its last fragment, ``source`` the sender's address."""

    arrival_ns: int
    source: bytes
    source_port: int
    port: int
    payload: bytes


def address_text(source: bytes) -> str:
    """Return an address as people write it."""
    return str(ipaddress.ip_address(source))


@dataclass(slots=True)
class CaptureCounts:
    """What a pass over a capture met besides whole datagrams.

    Attributes:
        untimed: Packets of pcapng that bear no time (simple packet blocks, or an unknown interface's).
        tick_ns: What a fraction of a second counts according to the file's header; 0 for pcapng.
        largest_fraction: The largest one that was met, in ticks.
    """

    packets: int = 0
    cut: int = 0
    untimed: int = 0
    incomplete: int = 0
    is_truncated: bool = False
    tick_ns: int = 0
    largest_fraction: int = 0


class Reassembly:
    """Turns link-layer packets into UDP datagrams."""

    def __init__(self, counts: CaptureCounts) -> None:
        self._counts = counts
        self._open: OrderedDict[bytes, _Fragments] = OrderedDict()

    @property
    def open_datagrams(self) -> int:
        return len(self._open)

    def take(self, arrival_ns: int, link: int, packet: bytes) -> Datagram | None:
        """Return the datagram that a packet holds or completes; a packet cut inside its headers is counted."""
        try:
            network = packet[_network_offset(link, packet) :]
            version = network[0] >> 4 if network else 0
            if version == 4:
                return self._take_ipv4(arrival_ns, network)
            if version == 6:
                return self._take_ipv6(arrival_ns, network)
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
        source = network[12:16]
        more, offset = bool(fragment & 0x2000), (fragment & 0x1FFF) * 8
        if not more and offset == 0:
            return _udp(arrival_ns, source, data)
        key = network[12:20] + key_id.to_bytes(2, "big")
        return self._take_fragment(arrival_ns, source, key, offset, data, more)

    def _take_ipv6(self, arrival_ns: int, network: bytes) -> Datagram | None:
        length, kind = struct.unpack_from(">HB", network, 4)
        source, at = network[8:24], 40
        end = 40 + length if length else len(network)  # 0: a jumbogram, or segmentation offload
        while kind != _UDP:
            if kind == _IPV6_FRAGMENT:
                kind, place, key_id = struct.unpack_from(">BxH4s", network, at)
                if place & 0xFFF9 == 0:  # an atomic fragment (RFC 6946): the whole in one piece
                    at += 8
                    continue
                # Only the first fragment tells for certain what it holds; they all name its first header.
                if kind != _UDP:
                    return None
                data = network[at + 8 : end]
                key = network[8:40] + key_id
                return self._take_fragment(arrival_ns, source, key, place & 0xFFF8, data, bool(place & 1))
            step = _extension_bytes(kind, network[at + 1])
            if not step:
                return None
            kind, at = network[at], at + step
        return _udp(arrival_ns, source, network[at:end])

    def _take_fragment(
        self, arrival_ns: int, source: bytes, key: bytes, offset: int, data: bytes, more: bool
    ) -> Datagram | None:
        fragments = self._open.setdefault(key, _Fragments())
        whole = fragments.add(offset, data, more)
        if whole is None:
            if len(self._open) > _MAX_OPEN_DATAGRAMS:
                self._open.popitem(last=False)
                self._counts.incomplete += 1
            return None
        del self._open[key]
        return _udp(arrival_ns, source, whole)


def _extension_bytes(kind: int, length: int) -> int:
    """Return the size of an IPv6 extension header, 0 for what is none."""
    if kind in _IPV6_OPTIONS:
        return 8 * (length + 1)
    return 4 * (length + 2) if kind == _IPV6_AUTHENTICATION else 0


class _Fragments:
    """The pieces of one datagram, in whatever order they come."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._bytes = 0
        self._size: int | None = None

    def add(self, offset: int, data: bytes, more: bool) -> bytes | None:
        """Return the whole once every byte is there."""
        if offset + len(data) > _MAX_DATAGRAM_BYTES or self._bytes + len(data) > _MAX_PIECES_BYTES:
            return None
        self._bytes += len(data) - len(self._pieces.get(offset, b""))
        self._pieces[offset] = data
        if not more:
            self._size = offset + len(data)
        if self._size is None or self._bytes < self._size:
            return None
        whole = bytearray()
        for start in sorted(self._pieces):
            if start > len(whole):
                return None
            whole[start:] = self._pieces[start]
        return bytes(whole) if len(whole) == self._size else None


def _udp(arrival_ns: int, source: bytes, segment: bytes) -> Datagram | None:
    source_port, port, length = struct.unpack_from(">HHH", segment)
    # Length 0 stands for "larger than the field can say" in offloaded captures.
    payload = segment[8 : length or None]
    is_whole = len(payload) == max(0, (length or len(segment)) - 8)
    return Datagram(arrival_ns, source, source_port, port, payload) if is_whole else None


def _network_offset(link: int, packet: bytes) -> int:
    """Return where the network header begins, behind VLAN tags; the packet's end where it holds no IP."""
    if link not in _PROTOCOL_AND_HEADER:
        return 4 if link in (_NULL, _LOOP) else 0
    protocol_at, at = _PROTOCOL_AND_HEADER[link]
    protocol = struct.unpack_from(">H", packet, protocol_at)[0]
    for _ in range(_MAX_TAGS):
        if protocol not in _VLAN_TAGS:
            break
        protocol, at = struct.unpack_from(">H", packet, at + 2)[0], at + 4
    is_ip = protocol in (0x0800, 0x86DD) or link != _ETHERNET
    return at if is_ip else len(packet)
