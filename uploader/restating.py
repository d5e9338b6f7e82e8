"""Keeps the consent state beside delivered episodes as new as the log: a withdrawal, an expiry, a new grant.

Nothing is uploaded again for it. What the store was told last lies beside the local copy, so that after a restart
only what differs is asked of the store.
"""

from contextlib import suppress
from pathlib import Path

from sensorium.errors import BusyError, ConsentError
from sensorium.sync.consent.grants import ConsentLedger
from sensorium.sync.consent.state import ConsentState, consent_state, pack_state, read_state
from sensorium.sync.episode.files import CONSENT_STATE_FILE
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.spool import Spool, write_durably
from sensorium.sync.erasure import owned
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key, trusted_keys
from sensorium.timebase import Clock
from sensorium.uploader.receipt import consent_key, read_receipt
from sensorium.uploader.stores.store import ObjectMissingError, Store

_MOST_LOOKED_AT = 20
"""So many episodes are looked at in one step, so that uploads are not kept waiting by a large spool."""


def bring_state(
    store: Store, folder: Path, manifest: Manifest, ledger: ConsentLedger, now_utc_ns: int
) -> None:
    """Let the store carry what the personal streams may be used for; of one log, a newer row wins.

    Raises:
        StoreError: If the store failed.
        EpisodeError: If the disk does not take the copy of it.
        TrustError: If the operator's key cannot be used.
    """
    if not any(record.info.is_personal for record in manifest.streams):
        return
    state = consent_state(manifest, ledger, now_utc_ns)
    key = consent_key(manifest.episode_id)
    try:
        data = store.get(key)
        before = _read(data, manifest.episode_id)
    except ObjectMissingError:
        before = None
    if before is None or not _holds(before, state):
        data = pack_state(state, signing_key(Role.OPERATOR))
        store.upload(key).abort()
        upload = store.upload(key)
        upload.put_part(0, data)
        upload.complete(len(data), is_replacing=True)
    write_durably(folder / CONSENT_STATE_FILE, data)


def _read(data: bytes, episode_id: str) -> ConsentState | None:
    with suppress(ConsentError):
        return read_state(data, episode_id, trusted_keys(Role.OPERATOR))
    return None


def _holds(before: ConsentState, state: ConsentState) -> bool:
    """Return whether a state says what is to be said, or knows a later row of the same log."""
    return before.log_id == state.log_id and (before.seq > state.seq or before.streams == state.streams)


class Restating:
    """Call :meth:`step` in a loop; each call brings at most one state up to date."""

    def __init__(self, spool: Spool, store: Store, clock: Clock) -> None:
        self._spool = spool
        self._store = store
        self._clock = clock
        self._ledger: ConsentLedger | None = None
        self._left: list[Path] = []

    def step(self, ledger: ConsentLedger) -> str:
        """Return the episode whose state was brought up to date; "" if there was none among those looked at.

        A log that cannot be trusted changes nothing: what it would say is not known.

        Raises:
            StoreError, EpisodeError, TrustError: The episode stays due.
        """
        if ledger.fault:
            return ""
        if ledger is not self._ledger:
            self._ledger = ledger
            self._left = [*self._spool.gone_folders(), *self._spool.sealed_folders()]
        for _ in range(_MOST_LOOKED_AT):
            if not self._left:
                break
            folder = self._left[-1]
            is_told = self._look_at(folder, ledger)
            self._left.pop()
            if is_told:
                return folder.name
        return ""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be looked at."""
        return not self._left

    def _look_at(self, folder: Path, ledger: ConsentLedger) -> bool:
        receipt = read_receipt(folder)
        if receipt is None or receipt.store != self._store.url:
            return False
        try:
            manifest = read_manifest(folder)
            now_utc_ns = self._clock.utc_ns()
            state = consent_state(manifest, ledger, now_utc_ns)
            if not state.streams or self._was_told(folder, state):
                return False
            with owned(folder):
                bring_state(self._store, folder, manifest, ledger, now_utc_ns)
        except BusyError:
            return False  # whoever sends or erases it brings the state, too
        return True

    def _was_told(self, folder: Path, state: ConsentState) -> bool:
        try:
            before = _read((folder / CONSENT_STATE_FILE).read_bytes(), folder.name)
        except OSError:
            return False
        return before is not None and _holds(before, state)
