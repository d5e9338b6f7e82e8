"""Our own episodes as a source: declarations, payloads, sequence numbers and stamps as when recorded."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sensorium.drivers.frame import Frame, Loss, Place, RecordedStamps, StreamInfo
from sensorium.errors import EpisodeError, SourceError
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.episode.manifest import ConsentRecord, Manifest, read_seal
from sensorium.sync.episode.personal import PERSONAL_MODALITIES, SOURCE_GRANTS, source_grants
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.verify import verify
from sensorium.sync.sources.source import Problem, Source
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.verdict import Status

_NOT_RECORDED = "not in the recording"
_BEFORE = "before the first recorded sample"


class EpisodeSource(Source):
    """One episode folder, sealed unless ``allow_unverified``.

    Attributes:
        manifest: What was sealed with it; None for an episode that was never sealed.
        consents: For each stream what was decided when it was recorded, with the grants; they hold for the
            replay.

    Raises:
        SourceError: If it is no episode, torn, unsealed, or its files are not those that were signed.
    """

    kind = "episode"

    def __init__(self, path: Path, *, allow_unverified: bool = False) -> None:
        super().__init__(path)
        try:
            self._episode = Episode(path)
        except EpisodeError as err:
            raise SourceError(str(err)) from err
        try:
            self.manifest: Manifest | None = self._episode.manifest
            found = self._verify()
            if found and not allow_unverified:
                raise SourceError(
                    f"{path}: {found[0].sentence}; pass allow_unverified to replay it all the same"
                )
            self.streams = tuple(map(self._inheriting, self._episode.streams.values()))
            self.timeline = replace(self._episode.timeline, is_virtual=True)
            self.start_ns, self.end_ns = self._span_ns()
            self.problems = (*found, *self._find_problems())
        except EpisodeError as err:
            self.close()
            raise SourceError(str(err)) from err
        except BaseException:
            self.close()
            raise
        records = self.manifest.streams if self.manifest is not None else ()
        self.consents: dict[str, ConsentRecord] = {record.info.name: record.consent for record in records}
        begins = {
            record.info.name: next(iter(record.balances.values())) for record in records if record.balances
        }
        self.first_seq = {name: balance.first_seq for name, balance in begins.items()}

    def _inheriting(self, info: StreamInfo) -> StreamInfo:
        """Return a stream that says under which grants it was recorded: they must be live where it is replayed.

        That a camera or microphone is not personal is the word of whoever sealed it; a stranger's counts for
        nothing.
        """
        if info.modality in PERSONAL_MODALITIES and not info.is_personal and not self._is_by_known_device():
            info = replace(info, is_personal=True)
        if self.manifest is None or not info.is_personal:
            return info
        grants = dict.fromkeys(
            (*source_grants(info.details), *self.manifest.stream(info.name).consent.grants)
        )
        return replace(info, details={**info.details, SOURCE_GRANTS: " ".join(grants)}) if grants else info

    def _is_by_known_device(self) -> bool:
        if self.manifest is None:
            return False
        sealed = read_seal(self.path)  # who revised it since does not speak for who recorded it
        return bytes.fromhex(sealed.device_public_key) in trusted_keys(Role.DEVICE)

    def frames(self) -> Iterator[Frame | Loss]:
        """Yield the frames as they were published, with the capture times that were then computed.

        A driver that was restarted while recording began again at 0; its numbers go on here, because a replay
        is one instance. Numbers that were lost before the file are a loss at the source.
        """
        next_seq: dict[str, int] = {}
        base: dict[tuple[str, int], int] = {}
        try:
            for recorded in self._episode.frames():
                frame = replace(recorded.frame, recorded=_stamps_of(recorded.stamped))
                key = (frame.stream, recorded.instance)
                if key not in base:
                    base[key] = next_seq.get(frame.stream, 0)
                if base[key]:
                    frame = replace(frame, seq=frame.seq + base[key])
                missing = frame.seq - next_seq.get(frame.stream, self.first_seq.get(frame.stream, 0))
                if missing > 0:
                    reason = _NOT_RECORDED if frame.stream in next_seq else _BEFORE
                    yield Loss(frame.stream, missing, Place.SOURCE, reason)
                next_seq[frame.stream] = frame.next_seq
                yield frame
        except EpisodeError as err:
            raise SourceError(str(err)) from err

    def close(self) -> None:
        self._episode.close()

    def _verify(self) -> list[Problem]:
        """Return what speaks against the episode being what its device signed."""
        if self.manifest is None:
            return [
                Problem("unsealed", "", 1, "this episode was never sealed: nothing vouches for its files")
            ]
        verdict = verify(self.path)
        if verdict.status is Status.OK:
            return []
        return [Problem("unverified", "", 1, reason) for reason in verdict.reasons]

    def _span_ns(self) -> tuple[int, int]:
        if self.manifest is not None:
            offset_ns = self.timeline.utc_minus_host_ns
            return self.manifest.start_utc_ns - offset_ns, self.manifest.end_utc_ns - offset_ns
        start_ns, end_ns = 0, 0
        for _, row in self._episode.stamps():
            first_ns, last_ns = int(row.arrival_ns[0]), int(row.arrival_ns[-1])
            start_ns = min(start_ns, first_ns) if end_ns else first_ns
            end_ns = max(end_ns, last_ns)
        return start_ns, end_ns

    def _find_problems(self) -> Iterator[Problem]:
        if self.manifest is None:
            return
        if self.manifest.truncated:
            yield Problem(
                "truncated", "", 1, "the recording was interrupted; this is what could be recovered"
            )
        for record in self.manifest.streams:
            name = record.info.name
            if name not in self._episode.streams:
                reason = record.consent.reason or "no consent"
                yield Problem("absent_stream", name, 1, f"{name} was not recorded: {reason}")
            elif len(record.balances) > 1:
                text = f"{name}: its driver was restarted {len(record.balances) - 1} times; the numbers go on"
                yield Problem("restarted", name, len(record.balances) - 1, text)


def _stamps_of(stamped: Stamped) -> RecordedStamps:
    known = stamped.uncertainty
    return RecordedStamps(
        stamped.capture_ns, known.statistical_ns, known.floor_ns, known.asymmetry_ns, stamped.epoch
    )
