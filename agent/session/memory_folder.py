"""What drivers and recorder write on the way lies in memory: a disk that stands still must not hold them up.

A session's counter files, declarations and journals are links into a folder of a file system in memory. It outlives
every process, so balances stay exact whoever is killed; it does not outlive the machine, and then what was lost after
the last recorded sample is not known (the manifest says so). Whoever ends a session, or starts the next one after a
kill, brings the files home to the session's folder in the spool and removes the one in memory.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sensorium.agent.session.control import AgentNote
from sensorium.errors import BusyError, EpisodeError
from sensorium.sync.episode.spool import Spool
from sensorium.timebase import SECOND_NS, Clock

LINKED = ("counters", "declares", "journals")
_MEMORY = ("tmpfs", "ramfs")
_OLD_NS = 3600 * SECOND_NS
"""Before that, a folder waits for the next session on its own spool, which says what happened."""

_HOME_FILE = "home"
"""Names the session's folder in the spool; written before the folder has its final name."""


def make_memory_folder(run_dir: Path) -> str:
    """Link what must not wait for the disk from a session's folder into memory; return a problem, "" if none.

    Where there is no memory to be had, the files lie on the disk, and drivers wait when it stands still.
    """
    for place in _places():
        folder = place / f"{_prefix()}{run_dir.name}"
        scratch = place / f".{folder.name}"
        try:
            scratch.mkdir(mode=0o700)
            (scratch / _HOME_FILE).write_text(str(run_dir))
            for name in LINKED:
                (scratch / name).mkdir(mode=0o700)
            scratch.rename(folder)
        except OSError:
            shutil.rmtree(scratch, ignore_errors=True)
            continue
        for name in LINKED:
            (run_dir / name).symlink_to(folder / name)
        return ""
    return (
        "no file system in memory can be written (XDG_RUNTIME_DIR, /run/user, /dev/shm): a disk that stands still "
        "will hold drivers up"
    )


def bring_home(run_dir: Path) -> str:
    """Move a session's files from memory into its folder once all its processes have ended; again is harmless.

    Returns:
        Why it could not be done (the files stay in memory), "" if it was.
    """
    folders = {link.readlink().parent for name in LINKED if (link := run_dir / name).is_symlink()}
    try:
        for name in LINKED:
            _copy_home(run_dir / name)
    except OSError as err:
        return f"the counters of session {run_dir.name} stay in memory, {run_dir} does not take them: {err}"
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _copy_home(link: Path) -> None:
    if not link.is_symlink():
        return
    scratch = link.with_name(f".{link.name}.home")
    shutil.rmtree(scratch, ignore_errors=True)
    if link.is_dir():  # else the machine was off meanwhile
        shutil.copytree(link, scratch)
    else:
        scratch.mkdir(mode=0o700)
    link.unlink()
    scratch.rename(link)


def clear_up(spool: Path, clock: Clock) -> list[str]:
    """Bring home what killed sessions of a spool left in memory, and say so; the caller owns it, nothing runs on it.

    Other spools' are brought home too once they are old and nobody owns them, and removed with a spool that is gone.
    """
    said = []
    for folder, home in memory_folders().items():
        owner = home.parent.parent
        if owner == spool:
            said.append(_cleared(folder, home))
        elif not home.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        elif _is_old(folder, clock):
            _clear_of_others(folder, home, owner)
    return said


def _is_old(folder: Path, clock: Clock) -> bool:
    with contextlib.suppress(OSError):
        return clock.utc_ns() - folder.stat().st_mtime_ns > _OLD_NS
    return False


def _clear_of_others(folder: Path, home: Path, owner: Path) -> None:
    with contextlib.suppress(BusyError, EpisodeError), Spool(owner).lock():  # else its own agent does it
        note = AgentNote.load(owner)
        if note is None or not note.alive():
            _cleared(folder, home)


def _cleared(folder: Path, home: Path) -> str:
    problem = bring_home(home)
    if problem:
        return problem
    shutil.rmtree(folder, ignore_errors=True)  # of a session that was killed before it made its links
    return f"brought the counters of session {home.name}, which was killed, home from {folder}"


def memory_folders() -> dict[Path, Path]:
    """Return the folders in memory of this user's sessions, running or killed, and theirs in the spools."""
    found = {}
    for folder in (folder for place in _places() for folder in sorted(place.glob(f"{_prefix()}*"))):
        with contextlib.suppress(OSError):  # its session has just ended
            found[folder] = Path((folder / _HOME_FILE).read_text())
    return found


def _prefix() -> str:
    return f"sensorium-{os.getuid()}-"


def _places() -> Iterator[Path]:
    """Yield the folders of file systems in memory that this user may write to, each once."""
    named = (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}", "/dev/shm")
    for place in dict.fromkeys(Path(name) for name in named if name):
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK) and _lies_in_memory(place):
            yield place


def _lies_in_memory(place: Path) -> bool:
    """Return whether the file system that is mounted last above a folder keeps nothing on a disk."""
    path = place.resolve()
    found = ("", "")
    for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
        _, point, kind, *_ = line.split(" ")
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1] in _MEMORY
