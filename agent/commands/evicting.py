"""What `sensorium episodes evict` and `sensorium upload verify` do; each function returns an exit code."""

import random
from pathlib import Path
from typing import Any

from sensorium.agent.commands.output import print_json, say
from sensorium.errors import StoreError, UsageError
from sensorium.sync.episode.spool import Spool
from sensorium.sync.reading.locate import folder_of
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.timebase import HostClock
from sensorium.uploader.eviction import Eviction, delete, evict, evict_oldest
from sensorium.uploader.proof import look_again
from sensorium.uploader.receipt import State, upload_state
from sensorium.uploader.stores.opening import open_store
from sensorium.uploader.stores.store import Store


def evict_episodes(
    spool: Path, episode: str | None, store: str, free_mb: int | None, is_dry_run: bool, as_json: bool
) -> int:
    """Remove local copies that the store was just seen to hold, oldest first.

    Returns:
        0 if all that was asked for went (or would), 1 if some had to stay.

    Raises:
        UsageError: If the store is not named, or spool or episode are not there.
        BusyError: If the episode that was named is being sent.
        StoreError: If the store cannot be asked about it.
    """
    folder = None if episode is None else folder_of(episode, spool).resolve()
    found = _spool(spool if folder is None else _home(folder, spool), store, "episodes evict")
    remote, trusted = _open(store), trusted_keys(Role.DEVICE)
    if folder is None:
        wanted_bytes = None if free_mb is None else free_mb * 1_000_000
        fates = evict_oldest(found, remote, trusted, wanted_bytes, is_dry_run)
        is_done = wanted_bytes is None or sum(fate.freed_bytes for fate in fates) >= wanted_bytes
        code = int(not is_done or (wanted_bytes is None and any(fate.reasons for fate in fates)))
    else:
        if folder.parent != found.sealed_dir:
            raise UsageError(
                f"{episode} is no sealed episode of {found.root}; `sensorium episodes list` names them"
            )
        fates = [evict(found, folder, remote, trusted, is_dry_run)]
        code = int(bool(fates[0].reasons))
    rows = [_row(fate, is_dry_run) for fate in fates]
    if as_json:
        print_json({"dry_run": is_dry_run, "episodes": rows})
    else:
        _say(rows)
    return code


def delete_episode(spool: Path, episode: str, reason: str, is_dry_run: bool, as_json: bool) -> int:
    """Remove an episode whether or not a store holds it, here and, by the uploader, there; signed, with the reason.

    Raises:
        UsageError: If it is no episode of the spool, or no reason is given.
        BusyError: If it is being sent.
        EpisodeError: If the disk does not let go of it.
    """
    folder = folder_of(episode, spool).resolve()
    found = Spool(_home(folder, spool).resolve())
    if not reason.strip():
        raise UsageError("say why with --reason; it stays, signed, where the episode was")
    if folder not in (*found.sealed_folders(), *found.gone_folders()):
        raise UsageError(
            f"{episode} is no sealed episode of {found.root}; `sensorium episodes list` names them"
        )
    fate = delete(found, folder, f"deleted: {reason}", HostClock().utc_ns(), is_dry_run)
    row = _row(fate, is_dry_run) | {"state": "would be deleted" if is_dry_run else "deleted"}
    if as_json:
        print_json({"dry_run": is_dry_run, "episodes": [row]})
    else:
        _say([row])
    return 0


def verify_uploads(spool: Path, store: str, share: float, as_json: bool) -> int:
    """Read back what a store holds of each verified episode; exit code 1 if it lost anything, 3 if it was silent.

    Args:
        share: Of the files, drawn at random, that are read; of the others the size is asked.

    Raises:
        UsageError: If the store is not named or the spool not there.
    """
    found = _spool(spool, store, "upload verify")
    remote, trusted, rng = _open(store), trusted_keys(Role.DEVICE), random.Random()
    rows: list[dict[str, Any]] = []
    for folder in (*found.gone_folders(), *found.sealed_folders()):
        if upload_state(folder, remote.url) is not State.VERIFIED:
            continue
        row: dict[str, Any] = {"episode": folder.name}
        try:
            reasons = look_again(folder, remote, trusted, lambda _: rng.random() < share)
        except StoreError as err:
            rows.append(row | {"state": "unknown", "reasons": [str(err)]})
            continue
        rows.append(row | {"state": "lost" if reasons else State.VERIFIED.value, "reasons": reasons})
    if as_json:
        print_json({"store": remote.url, "sample": share, "episodes": rows})
    else:
        _say(
            rows,
            f"{found.root} has no episode with a receipt of {remote.url} that counts: nothing to look at",
        )
    states = {row["state"] for row in rows}
    return 1 if "lost" in states else StoreError.exit_code if "unknown" in states else 0


def _home(folder: Path, spool: Path) -> Path:
    """Return the spool that an episode lies in, where a folder was named that lies in one; else the one given."""
    own = Spool.of(folder)
    return own.root if folder in (*own.sealed_folders(), *own.gone_folders()) else spool


def _spool(spool: Path, store: str, command: str) -> Spool:
    if not store:
        raise UsageError(f"name the store: sensorium {command} --store file:///path/to/store")
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    return Spool(spool.resolve())


def _open(url: str) -> Store:
    return open_store(url, HostClock(), random.Random())


def _row(fate: Eviction, is_dry_run: bool) -> dict[str, Any]:
    gone = "would be evicted" if is_dry_run else "evicted"
    return {
        "episode": fate.episode_id,
        "state": "kept" if fate.reasons else gone,
        "freed_bytes": fate.freed_bytes,
        "reasons": list(fate.reasons),
    }


def _say(rows: list[dict[str, Any]], nothing: str = "there is no episode to look at") -> None:
    for row in rows:
        say("; ".join([f"{row['episode']}: {row['state']}", *row["reasons"]]))
    if not rows:
        say(nothing)
