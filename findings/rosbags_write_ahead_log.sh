#!/bin/sh
# Belief: a reader of rosbag2's sqlite files sees every row that sqlite itself sees, so also those that a recorder which
# was killed left in the write-ahead log beside the database (resilient recording presets write one).
#
# Seen with rosbags 0.11.9 on CPython 3.11: a folder of metadata.yaml (message_count 40), drive_0.db3 holding 20 rows
# and drive_0.db3-wal holding 20 more. Python's sqlite3, opening the same file, finds 40. rosbags' Reader states
# message_count 40 and yields 20 messages, without an error or a warning: it opens the database as immutable, and sqlite
# does not look for a log then.
#
# Prints the three counts; exits non-zero if the behaviour is another one.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "rosbags==0.11.9"
cat >"$work/try.py" <<'PY'
import shutil
import sqlite3
import struct
import sys
from pathlib import Path

from rosbags.rosbag2 import Reader

COUNT, KEPT, STEP_NS, START_NS = 40, 20, 50_000_000, 1_700_000_000_000_000_000
work = Path(sys.argv[1])
live, bag = work / "live", work / "drive"
live.mkdir()
bag.mkdir()
db = sqlite3.connect(live / "drive_0.db3")
db.execute(
    "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,"
    " serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL)"
)
db.execute(
    "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL)"
)
db.execute("INSERT INTO topics VALUES(1, '/count', 'std_msgs/msg/Int32', 'cdr', '')")
db.commit()
db.execute("PRAGMA journal_mode=WAL")
for k in range(COUNT):
    row = (START_NS + k * STEP_NS, struct.pack("<BBBBi", 0, 1, 0, 0, k))
    db.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(1, ?, ?)", row)
    db.commit()
    if k == KEPT - 1:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA wal_autocheckpoint=0")
for file in live.glob("drive_0.db3*"):
    if not file.name.endswith("-shm"):
        shutil.copy(file, bag)  # what lies there after a power failure
db.close()
(bag / "metadata.yaml").write_text(f"""rosbag2_bagfile_information:
  version: 5
  storage_identifier: sqlite3
  duration:
    nanoseconds: {(COUNT - 1) * STEP_NS}
  starting_time:
    nanoseconds_since_epoch: {START_NS}
  message_count: {COUNT}
  topics_with_message_count:
    - topic_metadata:
        name: /count
        type: std_msgs/msg/Int32
        serialization_format: cdr
        offered_qos_profiles: ""
      message_count: {COUNT}
  compression_format: ""
  compression_mode: ""
  relative_file_paths:
    - drive_0.db3
  files:
    - path: drive_0.db3
      starting_time:
        nanoseconds_since_epoch: {START_NS}
      duration:
        nanoseconds: {(COUNT - 1) * STEP_NS}
      message_count: {COUNT}
""")
with Reader(bag) as reader:
    stated, read = reader.message_count, sum(1 for _ in reader.messages())
(held,) = sqlite3.connect(bag / "drive_0.db3").execute("SELECT count(*) FROM messages").fetchone()
print(f"stated by rosbags {stated}, read by rosbags {read}, in the database by sqlite3 {held}")
sys.exit((stated, read, held) != (COUNT, KEPT, COUNT))
PY
"$work/venv/bin/python" -W error "$work/try.py" "$work"
