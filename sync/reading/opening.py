"""Opens an episode for reading, under its consent: behind ``sensorium.open``."""

from collections.abc import Callable, Collection
from pathlib import Path

from sensorium.errors import ConsentError, EpisodeError, UsageError
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.use import Rights
from sensorium.sync.episode.files import DATA_FILE, stream_file
from sensorium.sync.episode.manifest import Manifest, StreamRecord
from sensorium.sync.episode.personal import PERSONAL_MODALITIES
from sensorium.sync.episode.verify import signer_of
from sensorium.sync.reading.episode import Episode
from sensorium.sync.reading.locate import LocatedEpisode, locate
from sensorium.sync.reading.rights import consent_source, rights_by
from sensorium.sync.reading.streams import stream_of
from sensorium.timebase import HostClock

_USES = (Purpose.AI_TRAIN, Purpose.AI_EVAL, Purpose.ANNOTATE, Purpose.DEBUG)
"""Those that somebody reads an episode for; said where none was named."""


def open_episode(
    path_or_url: str | Path,
    purpose: str | Purpose | None = None,
    *,
    consent: str | Path | None = None,
    spool: str | Path | None = None,
) -> Episode:
    """Open an episode for reading; use it in a ``with`` statement, or close it.

    Signatures are checked and nothing is read but the manifest, whatever the size of the episode. Chunks are checked
    against their checksums as they are read; that the files are those that were signed says ``sensorium episodes
    verify``.

    Args:
        path_or_url: The folder of an episode, its id in the spool, a copy of it as a store keeps it, or
            ``file:///STORE/ID``.
        purpose: What it is read for, such as ``ai:train``: personal streams need a live grant for it, from the log
            of the spool that the episode lies in, or by the signed state beside a copy. None = read no personal
            stream; they are listed with the reason.
        consent: Folder of a consent log that governs the episode instead.
        spool: Where ids are looked for; None = ``$SENSORIUM_SPOOL``, or ``spool`` here.

    Raises:
        UsageError: If there is no such episode, or purpose.
        EpisodeError: If it is not sealed, or its manifest does not check out.
    """
    use = None if purpose is None else _purpose(purpose)
    located = locate(path_or_url, None if spool is None else Path(spool))
    if located.manifest is None:
        raise EpisodeError(
            f"{located.folder} is not sealed; let the agent finish, or run: sensorium episodes recover"
        )
    gate = _Gate(located, located.manifest, use, None if consent is None else Path(consent))
    rights = gate.rights()
    streams = {
        record.info.name: stream_of(record, gate.reason(record, rights))
        for record in located.manifest.streams
    }
    return Episode(located, streams, gate.ask)


def _purpose(text: str | Purpose) -> Purpose:
    try:
        return Purpose(text)
    except ValueError:
        known = ", ".join(repr(purpose.value) for purpose in Purpose)
        raise UsageError(f"purpose {text!r} is none; there are: {known}") from None


class _Gate:
    """Says which streams of an episode may be read, asked anew for every reading."""

    def __init__(
        self, located: LocatedEpisode, manifest: Manifest, purpose: Purpose | None, consent: Path | None
    ) -> None:
        self._located, self._manifest = located, manifest
        self._purpose = purpose
        self._consent = consent_source(located, consent)
        self._distrust = signer_of(located.folder).distrust

    def rights(self) -> Callable[[str], str]:
        """Return why each personal stream may not be used for the purpose now; "" if it may."""
        purpose = self._purpose
        if purpose is None:
            named = " or ".join(f"purpose={use.value!r}" for use in _USES[:2])
            return lambda _: f"it is personal: say what it is read for, {named} ..."
        try:
            rights: Rights = rights_by(self._manifest, self._consent())
        except ConsentError as err:
            reason = str(err)
            return lambda _: reason
        now_utc_ns = HostClock().utc_ns()

        def why(name: str) -> str:
            decision = rights.permits(name, purpose, now_utc_ns)
            return "" if decision.is_allowed else decision.reason

        return why

    def ask(self, names: Collection[str]) -> dict[str, str]:
        """Return why each of these streams may not be read now, as far as one may not."""
        personal = [record for name in names if self._is_personal(record := self._manifest.stream(name))]
        if not personal:
            return {}
        rights = self.rights()
        found = {record.info.name: self.reason(record, rights) for record in personal}
        return {name: reason for name, reason in found.items() if reason}

    def reason(self, record: StreamRecord, rights: Callable[[str], str]) -> str:
        name = record.info.name
        if name in self._manifest.erased:
            grave = next((each for each in self._manifest.tombstones if each.stream == name), None)
            return f"it was erased: {grave.reason if grave else 'the episode was deleted'}"
        if record.consent.decision == "denied" and not record.total.recorded:
            return f"it was not recorded: {record.consent.reason}"
        if record.info.is_personal:
            refusal = rights(name)
            if refusal:
                return refusal
        elif self._is_personal(record):
            return f"whether it is personal says only its signer: {self._distrust}"
        file = stream_file(name) if record.info.is_personal else DATA_FILE
        is_sealed = any(each.name == file for each in self._manifest.files)
        if not is_sealed and not record.total.recorded:
            return "no sample of it was recorded" if record.info.is_personal else ""
        return (
            "" if self._located.file(file).is_file() else f"its file {file} is not in {self._located.folder}"
        )

    def _is_personal(self, record: StreamRecord) -> bool:
        """Return whether consent must be asked: that a camera's images are not personal a stranger may not say."""
        return record.info.is_personal or (
            record.info.modality in PERSONAL_MODALITIES and bool(self._distrust)
        )
