"""The names of an episode's files: what is sealed, what may lie beside the seal, what a seal removes.

Everything that reads, writes, hashes, sends or withholds a file of an episode takes its name from here.
"""

import os
from pathlib import Path

DEFAULT_SPOOL = Path(os.environ.get("SENSORIUM_SPOOL", "spool"))
EPISODE_FOLDERS = ("sealed", "held", "open", "gone")
"""Folders of a spool that episodes lie in, in the order in which one is looked for by its id."""

DATA_FILE = "data.mcap"
"""Streams that are not personal, and what happened: marks, losses, pauses, readings of the clocks."""

SYNC_FILE = "sync.mcap"
"""Alignment rows and clock models, written behind the recording by the process that thinks."""

PLOTS_FILE = "plots.mcap"
"""Readings of the numeric streams that are not personal, thinned, for viewers; made before the seal."""

CALIBRATION_FILE = "calibration.yaml"
"""The calibration in force, a copy."""

SHARED_FILES = frozenset({DATA_FILE, SYNC_FILE, PLOTS_FILE, CALIBRATION_FILE})
"""Sealed files that belong to no single stream and hold nothing personal; every other one is a stream's."""

RESERVED_STREAMS = frozenset({"data", "sync", "plots", "sensorium"})
"""Names that no stream may have: of our own files, and of our own topics."""

MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"
SYNC_REPORT_FILE = "sync-report.html"
REMAP_FILE = "remap.npz"
UPLOAD_NOTE_FILE = "upload.json"
RECEIPT_FILE = "receipt.json"
CONSENT_STATE_FILE = "consent.json"
"""Beside a delivered copy: what its personal streams may be used for."""

BESIDE_THE_SEAL = frozenset(
    {
        MANIFEST_FILE,
        REPORT_FILE,
        SYNC_REPORT_FILE,
        REMAP_FILE,
        UPLOAD_NOTE_FILE,
        RECEIPT_FILE,
        CONSENT_STATE_FILE,
    }
)
"""Files of a sealed folder that may appear or change after signing; nothing is claimed about them."""

SIGNED_RECORDS = {RECEIPT_FILE: "receipt", CONSENT_STATE_FILE: "consent-state"}
"""Of those, the ones that somebody acts on: each is a signed document of its own; by name, and kind."""

PREPARED_FILE = ".prepared"
"""Marks the folder of an episode that has not begun: its files were made ahead of time."""

JOURNAL_FILE = ".journal.json"
CLOSING_FILE = ".closing.json"
RESERVE_FILE = ".reserve"
"""The three of an open episode: how its balance is settled after a crash, what the recorder knew when it
closed the files, room for the end of a full disk. Hidden, so that a seal leaves them out and removes them."""


def stream_file(stream: str) -> str:
    """Return the name of the file that a personal stream has for itself."""
    return f"{stream}.mcap"


_LITTER = frozenset(
    {
        "thumbs.db",
        "thumbs.db:encryptable",
        "ehthumbs.db",
        "desktop.ini",
        "lost+found",
        "icon\r",
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost.dir",
        "__macosx",
        "network trash folder",
        "temporary items",
        "found.000",
    }
)
"""In lower case: the file systems that these come from do not tell one from the other."""


def is_litter(name: str) -> bool:
    """Return whether a file or folder is what desktops, NAS boxes and editors leave wherever they look.

    Hidden ones are such, too: ``.DS_Store``, ``._data.mcap`` (AppleDouble), ``.nfs...``, ``.fuse_hidden...``. Beside
    an episode's files none is a finding, but a remark, and no command takes it for a file of the episode. A colon
    separates a file from a stream of it (``data.mcap:Zone.Identifier``) where a copy kept such as a file.
    """
    return (
        is_scratch(name)
        or name.lower() in _LITTER
        or name.endswith("~")
        or name.startswith("~$")
        or ":" in name
    )


def recorded_files(folder: Path) -> list[Path]:
    """Return the files of an episode folder that hold what was recorded, sorted, whatever else lies there."""
    return sorted(path for path in folder.glob("*.mcap") if not is_litter(path.name) and path.is_file())


def is_scratch(name: str) -> bool:
    """Return whether a file is hidden: work in progress that is neither sealed nor missed."""
    return name.startswith(".")
