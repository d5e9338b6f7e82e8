"""Files of ROS 2 bags in SQLite (``.db3``), read without rosbag2: also those that a killed recorder left behind.

Tables: rosbag2_storage_sqlite3, schema versions 1 to 4 (definitions of types stand in the file since 4). The file
itself is never written to: what needs a recovery (a write-ahead log or a journal beside it) is copied first.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sensorium.drivers.frame import MessageSchema
from sensorium.errors import SourceError
from sensorium.sync.sources import ros_types
from sensorium.sync.sources.budget import MAX_MESSAGE_BYTES
from sensorium.sync.sources.message_file import ChannelFacts, Message, MessageFile
from sensorium.sync.sources.message_stream import LATEST_STAMP_NS

MAGIC = b"SQLite format 3\0"
_LIMIT_LENGTH = 0  # SQLITE_LIMIT_LENGTH, which has its name in Python since 3.11
_MAX_TOPICS = 100_000
_STEPS_PER_CALL = 10_000
_FREE_CALLS = 20_000
_SPARE_BYTES = 1 << 30
_LOGS = ("-wal", "-journal")
_PLAIN_TABLES = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name IN ('messages', 'topics')"


class SqliteBag(MessageFile):
    """One ``.db3`` file.

    Raises:
        SourceError: If it holds no bag, or is locked or damaged.
    """

    kind = "ROS 2 bag"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._file = self._recovered()
        self._channels: dict[int, ChannelFacts] = {}
        try:
            with closing(self._open()) as database:
                self._require_tables(database)
                self._read_channels(database)
        except (sqlite3.Error, ValueError) as err:
            self.close()
            raise self._damaged(err) from err
        except SourceError:
            self.close()
            raise

    def scan(self) -> Iterator[Message]:
        try:
            yield from self._rows(is_scan=True)
        except sqlite3.Error as err:
            self.notes.note(
                "truncated", f"{self.path.name} is damaged ({err}); what could be read of it is played"
            )

    def messages(self) -> Iterator[Message]:
        try:
            yield from self._rows(is_scan=False)
        except sqlite3.Error:
            return  # where the scan ended too

    def channels(self) -> dict[int, ChannelFacts]:
        return self._channels

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _recovered(self) -> Path:
        """Return the file to read: a copy with its log where a recorder was killed, else the file itself."""
        beside = [self.path.with_name(self.path.name + ending) for ending in _LOGS]
        try:
            logs = [path for path in beside if path.is_file() and path.stat().st_size]
            if not logs:
                return self.path
            needed = sum(path.stat().st_size for path in (self.path, *logs)) + _SPARE_BYTES
            if needed > shutil.disk_usage(tempfile.gettempdir()).free:
                names = " and ".join(path.name for path in logs)
                text = f"{names} holds messages that are not in {self.path.name}, and there is no room to join a copy"
                self.notes.note("unread_log", text)
                return self.path
            self._scratch = tempfile.TemporaryDirectory(prefix="sensorium-bag-")
            for path in (self.path, *logs):
                shutil.copyfile(path, Path(self._scratch.name) / path.name)
        except OSError as err:
            self.close()
            raise SourceError(f"{self.path}: cannot be read: {err.strerror or err}") from err
        return Path(self._scratch.name) / self.path.name

    def _open(self) -> sqlite3.Connection:
        mode = "mode=ro&immutable=1" if self._scratch is None else "mode=rw"
        database = sqlite3.connect(f"{self._file.resolve().as_uri()}?{mode}", uri=True)
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        if hasattr(database, "setlimit"):  # since Python 3.11
            database.setlimit(_LIMIT_LENGTH, MAX_MESSAGE_BYTES)
        # A damaged tree may lead a query in circles.
        calls_left = _FREE_CALLS + self._file.stat().st_size // 1000

        def is_too_long() -> bool:
            nonlocal calls_left
            calls_left -= 1
            return calls_left < 0

        database.set_progress_handler(is_too_long, _STEPS_PER_CALL)
        database.execute("PRAGMA trusted_schema = OFF")
        return database

    def _require_tables(self, database: sqlite3.Connection) -> None:
        """Raise unless both tables are plain ones: a view or a computed column may make rows without end."""
        tables = dict(database.execute(_PLAIN_TABLES).fetchmany(8))
        is_plain = all(str(sql).upper().startswith("CREATE TABLE") for sql in tables.values())
        if set(tables) != {"messages", "topics"} or not is_plain:
            raise ValueError("it holds no tables 'messages' and 'topics'; no ROS 2 bag")
        for table in tables:
            if any(row[6] for row in database.execute(f"PRAGMA table_xinfo({table})")):
                raise ValueError(f"columns of its table {table!r} are computed; no recorder does that")

    def _read_channels(self, database: sqlite3.Connection) -> None:
        definitions = self._definitions(database)
        query = "SELECT id, name, type, serialization_format FROM topics ORDER BY id"
        for number, topic, kind, encoding in database.execute(query).fetchmany(_MAX_TOPICS):
            syntax, text = definitions.get(str(kind), ("", ""))
            schema = MessageSchema(str(encoding or ros_types.CDR), str(kind), syntax, text.encode())
            self._channels[number] = ChannelFacts(str(topic), schema)

    def _definitions(self, database: sqlite3.Connection) -> dict[str, tuple[str, str]]:
        """Return (syntax, definition) by type; of files before schema version 4 there are none."""
        query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
        try:
            rows = database.execute(query).fetchmany(_MAX_TOPICS)
        except sqlite3.OperationalError:
            return {}
        return {str(kind): (str(syntax), str(text)) for kind, syntax, text in rows}

    def _rows(self, is_scan: bool) -> Iterator[Message]:
        """Yield the messages by arrival. The order is found without the data, which may be larger than memory."""
        with closing(self._open()) as database:
            order = database.execute(
                "SELECT rowid, timestamp, topic_id FROM messages ORDER BY timestamp, rowid"
            )
            for row, log_ns, topic in order:
                if topic not in self._channels or not isinstance(row, int):
                    self._note(is_scan, "unknown_type", f"messages of topic {topic!r}, which is not declared")
                    continue
                if not isinstance(log_ns, int) or not 0 <= log_ns <= LATEST_STAMP_NS:
                    name = self._channels[topic].topic
                    self._note(is_scan, "bad_stamp", _stamp_sentence(name, log_ns))
                    continue
                found = database.execute("SELECT data FROM messages WHERE rowid = ?", (row,)).fetchone()
                if found is None or not isinstance(found[0], bytes):
                    self._note(is_scan, "bad_record", f"message {row} of {self.path.name} has no data")
                    continue
                yield Message(log_ns, (row, 0), topic, None, None, found[0])

    def _note(self, is_scan: bool, kind: str, sentence: str) -> None:
        if is_scan:
            self.notes.note(kind, sentence)

    def _damaged(self, err: Exception) -> SourceError:
        remedy = ""
        if isinstance(err, sqlite3.DatabaseError):
            remedy = f"; what is left of it: sqlite3 {self.path.name} .recover | sqlite3 recovered.db3"
        return SourceError(f"{self.path}: damaged or unfinished {self.kind}: {err}{remedy}")


def _stamp_sentence(topic: str, log_ns: object) -> str:
    when = "is before 1970 or beyond 2043" if isinstance(log_ns, int) else "is no number"
    return f"{topic}: messages whose time of arrival {when} are left out ({str(log_ns)[:30]} ns the first)"
