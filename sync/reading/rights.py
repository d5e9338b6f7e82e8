"""What an episode may be used for where it lies: by the consent log of its spool, or the state beside a copy."""

from collections.abc import Callable
from pathlib import Path

from sensorium.errors import ConsentError
from sensorium.sync.consent.grants import ConsentLedger
from sensorium.sync.consent.state import ConsentState, read_state
from sensorium.sync.consent.store import DEFAULT_FOLDER, ConsentStore
from sensorium.sync.consent.use import Rights, rights_of
from sensorium.sync.episode.files import CONSENT_STATE_FILE
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.reading.locate import LocatedEpisode, Place
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys

Consent = ConsentLedger | ConsentState | None
"""The log of a spool as it is now, the signed state beside a copy, or nothing: then nothing personal is used."""


def consent_of(episode: LocatedEpisode, folder: Path | None = None) -> Consent:
    """Return the consent that governs an episode now; see :func:`consent_source`.

    Raises:
        ConsentError: If the state beside a copy is damaged, another's, or signed by nobody who is trusted here.
    """
    return consent_source(episode, folder)()


def consent_source(episode: LocatedEpisode, folder: Path | None = None) -> Callable[[], Consent]:
    """Return what tells the consent that governs an episode, as it is whenever it is asked.

    Args:
        folder: Of a consent log that knows better; None = that of the spool, or the state beside a copy.
    """
    if folder is None and episode.place is Place.SPOOL:
        folder = Spool.of(episode.folder).root / DEFAULT_FOLDER
    if folder is not None:
        return ConsentStore(folder).poll
    return lambda: _state_beside(episode)


def _state_beside(episode: LocatedEpisode) -> ConsentState | None:
    path = episode.folder / CONSENT_STATE_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ConsentError(f"{path} cannot be read: {err.strerror}") from err
    return read_state(data, episode.episode_id, trusted_keys(Role.OPERATOR))


def rights_by(manifest: Manifest, consent: Consent) -> Rights:
    """Return the rights in an episode under that consent."""
    if isinstance(consent, ConsentLedger):
        return rights_of(manifest, ledger=consent)
    return rights_of(manifest, state=consent)
