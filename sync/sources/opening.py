"""Which reader a recording needs, decided by its content, never by its name alone."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from sensorium.errors import SourceError
from sensorium.sync.episode.folder import is_episode
from sensorium.sync.sources.source import Source
from sensorium.sync.sources.xdf_chunks import MAGIC as XDF_MAGIC

SUPPORTED = (
    "an episode folder, an EuRoC folder, a ROS 1 bag, a ROS 2 bag folder, an MCAP file, "
    "or an Ouster capture (.pcap or .pcapng with its .json)"
)


class Format(str, Enum):
    """Recordings that can be read."""

    EPISODE = "episode"
    EUROC = "euroc"
    ROS1_BAG = "ros1"
    ROS2_BAG = "ros2"
    MCAP = "mcap"
    PCAP = "pcap"


_MAGICS: tuple[tuple[bytes, Format], ...] = (
    (b"#ROSBAG V", Format.ROS1_BAG),
    (b"\x89MCAP0\r\n", Format.MCAP),
    (b"SQLite format 3\0", Format.ROS2_BAG),
    (b"\xd4\xc3\xb2\xa1", Format.PCAP),
    (b"\xa1\xb2\xc3\xd4", Format.PCAP),
    (b"\x4d\x3c\xb2\xa1", Format.PCAP),
    (b"\xa1\xb2\x3c\x4d", Format.PCAP),
    (b"\x0a\x0d\x0d\x0a", Format.PCAP),
)
_BAG_ENDINGS = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
_FOREIGN_MAGICS = (
    (XDF_MAGIC, "an XDF file, which cannot be replayed yet; `sensorium sync report` reads its clocks"),
    (b"VisionRe", "a VRS file, which cannot be read yet"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"\x89PNG", "a single image"),
    (b"\xff\xd8\xff", "a single image"),
    (b"{", "a JSON document: give the recording that it belongs to"),
)


def identify(path: Path) -> Format:
    """Return the format of a recording from its first bytes or its folder layout; reads a few bytes at most.

    Raises:
        SourceError: If it is absent or of no known format; says what was found and what is supported.
    """
    try:
        if path.is_dir():
            return _identify_folder(path)
        if path.exists() and not path.is_file():  # reading a pipe or a terminal could wait for ever
            raise SourceError(f"{path}: neither a file nor a folder; supported: {SUPPORTED}")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as err:
        raise SourceError(
            f"{path}: No such file or folder; look at the path; supported: {SUPPORTED}"
        ) from err
    except OSError as err:
        raise SourceError(f"{path}: cannot be opened: {err.strerror}") from err
    for magic, found in _MAGICS:
        if head.startswith(magic):
            return found
    if not head:
        raise SourceError(f"{path}: the file is empty; supported: {SUPPORTED}")
    for magic, description in _FOREIGN_MAGICS:
        if head.startswith(magic):
            raise SourceError(f"{path}: this is {description}; supported: {SUPPORTED}")
    raise SourceError(f"{path}: begins with {head[:8]!r}, no known recording; supported: {SUPPORTED}")


def open_source(path: Path, *, allow_unverified: bool = False) -> Source:
    """Open a recording for reading.

    Args:
        path: File or folder.
        allow_unverified: Read an episode whose manifest is absent or does not match its files.

    Raises:
        SourceError: If it cannot be read; says what was found and what is supported.
    """
    return _OPENERS[identify(path)](path, allow_unverified)


def _identify_folder(path: Path) -> Format:
    if is_episode(path):
        return Format.EPISODE
    if (path / "metadata.yaml").is_file():
        return Format.ROS2_BAG
    if (path / "mav0").is_dir() or any(path.glob("cam*/data.csv")) or any(path.glob("imu*/data.csv")):
        return Format.EUROC
    if any(entry.name.endswith(_BAG_ENDINGS) and not entry.name.startswith(".") for entry in path.iterdir()):
        return Format.ROS2_BAG  # a recorder that was killed leaves no metadata.yaml
    inside = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "") if inside else "nothing"
    raise SourceError(f"{path}: a folder with {shown}: no known recording; supported: {SUPPORTED}")


# The readers are imported when needed: a replay of a bag must not load the Ouster decoder, nor the reverse.
def _open_episode(path: Path, allow_unverified: bool) -> Source:
    from sensorium.sync.sources.episodes import EpisodeSource

    return EpisodeSource(path, allow_unverified=allow_unverified)


def _open_euroc(path: Path, _allow_unverified: bool) -> Source:
    from sensorium.sync.sources.euroc import EurocSource

    return EurocSource(path)


def _open_ros1(path: Path, _allow_unverified: bool) -> Source:
    from sensorium.sync.sources.message_source import MessageSource
    from sensorium.sync.sources.ros1_bag import Ros1Bag

    return MessageSource(path, [Ros1Bag(path)])


def _open_ros2(path: Path, _allow_unverified: bool) -> Source:
    from sensorium.sync.sources.ros2_folder import open_ros2_bag

    return open_ros2_bag(path)


def _open_mcap(path: Path, _allow_unverified: bool) -> Source:
    from sensorium.sync.sources.mcap_files import McapFile
    from sensorium.sync.sources.message_source import MessageSource

    return MessageSource(path, [McapFile(path)])


def _open_pcap(path: Path, _allow_unverified: bool) -> Source:
    from sensorium.sync.sources.ouster_capture import OusterCaptureSource

    return OusterCaptureSource(path)


_OPENERS: dict[Format, Callable[[Path, bool], Source]] = {
    Format.EPISODE: _open_episode,
    Format.EUROC: _open_euroc,
    Format.ROS1_BAG: _open_ros1,
    Format.ROS2_BAG: _open_ros2,
    Format.MCAP: _open_mcap,
    Format.PCAP: _open_pcap,
}
