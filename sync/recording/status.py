"""What a running session says of itself: the answers to ``status`` and ``streams``."""

from typing import Any

from pydantic import TypeAdapter

from sensorium.drivers.frame import StreamInfo
from sensorium.sync.consent.grants import ConsentLedger
from sensorium.sync.consent.remedy import GrantFolder, how_to_record
from sensorium.sync.recording.check_book import CheckBook
from sensorium.sync.recording.open_episode import OpenEpisode
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.synchronizer import Synchronizer
from sensorium.timebase import SECOND_NS, Clock

Reply = dict[str, Any]
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)


class SessionStatus:
    """Reads the synchronizer; changes nothing."""

    def __init__(self, synchronizer: Synchronizer, clock: Clock, spec: SyncSpec) -> None:
        self._synchronizer = synchronizer
        self._folder = GrantFolder(spec.spool, spec.consent)
        self._rig = spec.facts.rig
        self._asked: tuple[ConsentLedger, tuple[str, ...], list[str]] | None = None
        self._clock = clock
        self._heard_checker_ns: int | None = None

    def note_checker(self) -> None:
        """Take note that the checker said something."""
        self._heard_checker_ns = self._clock.now_ns()

    def streams(self) -> Reply:
        """Return the declared streams, and whether recording has begun; the checker plans by them."""
        found = self._synchronizer
        infos = [stream.info for _, stream in found.roster.streams()]
        return {
            "streams": [_INFO.dump_python(info, mode="json") for info in infos],
            "episode": found.episode.episode_id if found.episode is not None else None,
        }

    def session(self) -> Reply:
        """Return the state of the session, its open episode and its checks."""
        found = self._synchronizer
        episode, refusal = found.episode, found.policy.permit.refusal
        return {
            "episode": episode.episode_id if episode is not None else None,
            "folder": str(episode.folder) if episode is not None else None,
            "recorded_s": (found.now_ns() - episode.started_ns) / 1e9 if episode is not None else 0.0,
            "bytes": episode.writer.bytes_stored() if episode is not None else 0,
            "streams": self._open_streams(episode) if episode is not None else {},
            "allowed_by": self._allowed_by(episode) if episode is not None else [],
            "devices": {
                instance.declare.device: "ended" if instance.has_ended else "connected"
                for instance in found.roster
            },
            "paused": found.consent.is_paused,
            "fault": found.fault,
            "refused": refusal.sentence if refusal is not None else "",
            "checks": self._checks(found.policy.book),
            "sealed": found.briefing.n_sealed,
            "disk": found.disk.status(episode, found.now_ns()),
            "rejected": dict(found.receiver.rejected),
            "thinking": {"connected": found.link.has_thinker, "lost_batches": found.link.lost_batches},
            "warnings": found.warnings(),
        }

    def _allowed_by(self, episode: OpenEpisode) -> list[str]:
        """Return sentences with the commands that would let what is withheld now be recorded."""
        found, now = self._synchronizer, self._synchronizer.now()
        infos = [record.info for record in episode.streams.values()]
        withheld = [info for info in infos if found.consent.withheld(info, now)]
        names, ledger = tuple(info.name for info in withheld), found.consent.ledger
        if self._asked is None or self._asked[0] is not ledger or self._asked[1] != names:
            said = list(how_to_record(withheld, ledger, now.utc_ns, self._folder, self._rig))
            self._asked = (ledger, names, said)
        return self._asked[2]

    def _open_streams(self, episode: OpenEpisode) -> Reply:
        none = {"rate_hz": 0.0, "uncertainty_p95_us": 0.0, "latency_p50_us": 0.0, "latency_p99_us": 0.0}
        streams: Reply = {}
        now = self._synchronizer.now()
        for name, record in episode.streams.items():
            balances = episode.balances(name)
            thought = self._synchronizer.briefing.summaries.get(name, none)
            streams[name] = {
                "modality": record.info.modality.value,
                "produced": sum(account.produced for account in balances),
                "recorded": record.samples,
                "dropped": sum(account.dropped.total() for account in balances),
                "withheld": self._synchronizer.consent.withheld(record.info, now),
                "rate_hz": thought["rate_hz"],
                "uncertainty_p95_us": thought["uncertainty_p95_us"],
                "latency_us": {"p50": thought["latency_p50_us"], "p99": thought["latency_p99_us"]},
            }
        return streams

    def _checks(self, book: CheckBook) -> Reply:
        """Return what the checker said last of each pair, how long ago it was captured, and what it costs."""
        planned = {(each.check, each.subject): each for each in book.report.checks}
        keys = sorted({*planned, *book.latest})
        heard_ns = self._heard_checker_ns
        return {
            "cpu_share": book.report.cpu_share,
            "cpu_used": book.report.used,
            "postponed_s": book.report.postponed_s,
            "silent_s": None if heard_ns is None else (self._clock.now_ns() - heard_ns) / SECOND_NS,
            "pairs": [self._check(book, key) for key in keys],
        }

    def _check(self, book: CheckBook, key: tuple[str, str]) -> Reply:
        window = book.latest.get(key)
        plan = next((each for each in book.report.checks if (each.check, each.subject) == key), None)
        age_ns = self._synchronizer.now_ns() - window.end_ns if window else 0
        return {
            "check": key[0],
            "subject": window.verdict.subject if window else key[1],
            "status": window.verdict.status.value if window else "none yet",
            "age_s": age_ns / SECOND_NS if window else None,
            "reasons": list(window.verdict.reasons) if window else [plan.note] if plan else [],
            "every_s": plan.every_s if plan else None,
            "cost_s": plan.cost_s if plan else None,
            "note": plan.note if plan else "",
        }
