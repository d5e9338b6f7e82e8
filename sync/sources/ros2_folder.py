"""Which files a ROS 2 bag is made of: by its metadata.yaml, or by their names where the recorder was killed first."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
import zstandard

from sensorium.errors import SourceError
from sensorium.sync.sources.mcap_files import MAGIC as MCAP_MAGIC
from sensorium.sync.sources.mcap_files import McapFile
from sensorium.sync.sources.message_file import MessageFile
from sensorium.sync.sources.message_source import MessageSource
from sensorium.sync.sources.source import Problem
from sensorium.sync.sources.sqlite_bag import MAGIC as SQLITE_MAGIC
from sensorium.sync.sources.sqlite_bag import SqliteBag

METADATA = "metadata.yaml"
KIND = "ROS 2 bag"
ENDINGS = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
_PART = re.compile(r"(.*?)_?(\d+)")
_MAX_METADATA_BYTES = 16 << 20
_MAX_FILES = 4096
_REINDEX = "'ros2 bag reindex' writes it anew"
_SPARE_BYTES = 1 << 30
_FREE_BYTES = 4 << 30
_MAX_RATIO = 250
_COPY_BYTES = 1 << 20


def bag_files(folder: Path) -> list[Path]:
    """Return the files in a folder that can be parts of a ROS 2 bag, in the order of their numbers."""
    found = [
        path
        for path in folder.iterdir()
        if path.name.endswith(ENDINGS) and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=_part)


def open_ros2_bag(path: Path) -> MessageSource:
    """Open a folder or a single ``.db3`` file.

    Raises:
        SourceError: If files are missing, or nothing tells which files belong together.
    """
    remarks: list[Problem] = []
    files = [path]
    try:
        if path.is_dir():
            files = _files_of(path, remarks)
        opened = _opened(path, _begun(files, remarks))
    except OSError as err:
        raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
    source = MessageSource(path, opened, remarks)
    source.kind = KIND
    source.problems += tuple(_fewer(path, source.message_count))
    return source


def _begun(files: Sequence[Path], remarks: list[Problem]) -> Sequence[Path]:
    """Return the files that hold anything: a recorder that is killed may leave its last one empty."""
    begun = [path for path in files if path.stat().st_size]
    empty = [path.name for path in files if path not in begun]
    if not empty or not begun:
        return files
    text = f"{', '.join(empty[:5])}: empty, as where a recorder was killed before it wrote; the other files are played"
    remarks.append(Problem("truncated", "", len(empty), text))
    return begun


def _fewer(folder: Path, found: int) -> Iterator[Problem]:
    """Yield that a bag holds fewer or more messages than its recorder counted."""
    counted = _counted(folder) if (folder / METADATA).is_file() else None
    if counted is None or counted == found:
        return
    what = f"{counted - found} are lost" if counted > found else f"{METADATA} is of another state of it"
    text = f"{METADATA} counts {counted} messages, and {found} are in the files: {what}"
    yield Problem("truncated", "", abs(counted - found), text)


def _counted(folder: Path) -> int | None:
    facts = _facts(folder / METADATA)
    count = facts.get("message_count") if facts else None
    return count if type(count) is int and 0 <= count < 1 << 63 else None


def _part(path: Path) -> tuple[str, int, str]:
    stem = path.name.split(".")[0]
    parts = _PART.fullmatch(stem)
    return (parts[1], int(parts[2][:18]), path.name) if parts else (stem, -1, path.name)


def _files_of(folder: Path, remarks: list[Problem]) -> list[Path]:
    beside = bag_files(folder)
    if not (folder / METADATA).is_file():
        text = f"{METADATA} is missing, as where a recorder was killed; the files are played by their numbers"
        remarks.append(Problem("no_metadata", "", 1, f"{text} ({_REINDEX})"))
        return _by_name(folder, beside)
    listed = _listed(folder)
    if listed is None:
        if not beside:
            raise SourceError(f"{folder}: damaged {KIND}: {METADATA} lists no files, and none lie beside it")
        text = f"{METADATA} is damaged ({_REINDEX}); the files beside it are played by their numbers"
        remarks.append(Problem("no_metadata", "", 1, text))
        return _by_name(folder, beside)
    missing = [path.name for path in listed if not path.is_file()]
    if missing:
        there = [path.name for path in beside]
        lie = f"{', '.join(there[:5])} lie there" if there else "no other lies there"
        raise SourceError(
            f"{folder}: damaged {KIND}: files are missing that {METADATA} lists: {', '.join(missing[:5])}; {lie}: "
            f"bring them back, or give what is there file by file, or let 'ros2 bag reindex' write {METADATA} anew"
        )
    unlisted = [path.name for path in beside if path not in listed]
    if unlisted:
        text = f"{', '.join(unlisted[:5])}: not listed in {METADATA} and not played ({_REINDEX})"
        remarks.append(Problem("unlisted_file", "", len(unlisted), text))
    return listed


def _by_name(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files if their names say that they are one recording.

    Raises:
        SourceError: If they may be several.
    """
    if len({_part(path)[0] for path in files}) > 1 or len({_part(path)[1] for path in files}) < len(files):
        names = ", ".join(path.name for path in files[:4]) + (", ..." if len(files) > 4 else "")
        raise SourceError(
            f"{folder}: holds {names} without a {METADATA}, which would say whether they are one recording; give one "
            f"file, or let 'ros2 bag reindex' write it"
        )
    return files[:_MAX_FILES]


def _listed(folder: Path) -> list[Path] | None:
    """Return the files that metadata.yaml lists; None if it cannot be read.

    Raises:
        SourceError: If it was written by a storage plugin that is not read here.
    """
    facts = _facts(folder / METADATA)
    if facts is None:
        return None
    try:
        names = [PurePosixPath(_text(name)).name for name in facts["relative_file_paths"]]
        storage = _text(facts.get("storage_identifier", ""))
        packing = _text(facts.get("compression_format") or "")
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    if packing not in ("", "zstd"):
        raise SourceError(
            f"{folder}: its compression format {packing[:40]!r} is not supported, only zstd is; unpack its files first"
        )
    if storage not in ("", "sqlite3", "mcap"):
        raise SourceError(
            f"{folder}: storage plugin {storage[:40]!r} is not supported, only sqlite3 and mcap are"
        )
    listed = [folder / name for name in dict.fromkeys(names) if name not in ("", "..")]
    return listed[:_MAX_FILES] or None


def _facts(path: Path) -> dict[str, Any] | None:
    """Return what metadata.yaml says; None if it cannot be read."""
    if path.stat().st_size > _MAX_METADATA_BYTES:
        return None
    try:
        document: Any = yaml.load(path.read_text("utf-8", "replace"), yaml.CSafeLoader)
        facts = document["rosbag2_bagfile_information"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _text(value: Any) -> str:
    """Return a text; whatever else stands there is not written out: lists of aliases may unfold without end."""
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, found {type(value).__name__}")
    return value


def _opened(path: Path, files: Sequence[Path]) -> list[MessageFile]:
    opened: list[MessageFile] = []
    try:
        for file in files:
            opened.append(_open(file))
    except BaseException:
        for one in opened:
            one.close()
        raise
    if not opened:
        raise SourceError(f"{path}: holds no file of a {KIND}")
    return opened


def _open(file: Path) -> MessageFile:
    if file.name.endswith(".zstd"):
        return _PackedFile(file)
    with file.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(MCAP_MAGIC):
        return McapFile(file)
    if head == SQLITE_MAGIC:
        return SqliteBag(file)
    found = "is empty" if not head else f"begins with {head[:8]!r}"
    raise SourceError(f"{file}: damaged {KIND}: the file {found}, neither MCAP nor SQLite")


class _PackedFile(MessageFile):
    """A file that was packed as a whole with zstd; unpacked into a temporary folder while it is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._scratch = tempfile.TemporaryDirectory(prefix="sensorium-bag-")
        try:
            plain = Path(self._scratch.name) / path.name.removesuffix(".zstd")
            self._is_whole = _unpack_file(path, plain)
            self._inner = _open(plain)
        except BaseException:
            self._scratch.cleanup()
            raise
        self.kind, self.notes = self._inner.kind, self._inner.notes
        if not self._is_whole:
            self.notes.note(
                "truncated", f"{path.name} ends inside its compressed data; what stood before is played"
            )

    def scan(self) -> Iterator[Any]:
        return self._inner.scan()

    def messages(self) -> Iterator[Any]:
        return self._inner.messages()

    def channels(self) -> dict[int, Any]:
        return self._inner.channels()

    def close(self) -> None:
        self._inner.close()
        self._scratch.cleanup()


def _unpack_file(packed: Path, plain: Path) -> bool:
    """Unpack a file of zstd frames; return whether it was whole.

    Raises:
        SourceError: If there is no room for it, or it unpacks to more than recordings of its size do.
    """
    limit = max(_FREE_BYTES, _MAX_RATIO * packed.stat().st_size)
    room = shutil.disk_usage(plain.parent).free - _SPARE_BYTES
    left = min(limit, room)
    with packed.open("rb") as source, plain.open("wb") as target:
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        try:
            while piece := reader.read(_COPY_BYTES):
                left -= len(piece)
                if left < 0:
                    reason = (
                        "there is no room to unpack it"
                        if room < limit
                        else "it unpacks to more than any bag does"
                    )
                    raise SourceError(f"{packed}: {reason} in {plain.parent.parent}")
                target.write(piece)
        except zstandard.ZstdError:
            return False
    return True
