"""What an episode holds beside frames: events, clock bases, clock models, sync rows; each with its layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from sensorium.errors import EpisodeError
from sensorium.sync.align import Match, Matched, SyncRow
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.mcap_records import Buffer
from sensorium.timebase import BaseReading


@dataclass(frozen=True, slots=True)
class EpisodeEvent:
    """Something that happened while recording.

    Attributes:
        kind: ``mark``, ``pause``, ``resume``, ``consent``, ``clock``, ``loss``, ``driver``, ``split`` ...
        stream: Which stream it concerns; "" = the episode.
        detail: One sentence with numbers.
        fields: The numbers again, for machines.
    """

    host_ns: int
    kind: str
    stream: str = ""
    detail: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """A clock model as it stood at ``host_ns``."""

    stream: str
    instance: int
    host_ns: int
    model: ClockModel


EntryT = TypeVar("EntryT")


@dataclass(frozen=True, slots=True)
class EntryFormat(Generic[EntryT]):
    """Topic, schema and layout of one kind of entry."""

    topic: str
    message: Any
    host_ns: Callable[[EntryT], int]
    fields: Callable[[EntryT], dict[str, Any]]
    build: Callable[[Any], EntryT]

    def pack(self, entry: EntryT, utc_ns: int) -> bytes:
        seconds, nanos = divmod(utc_ns, 1_000_000_000)
        message = self.message(timestamp={"seconds": seconds, "nanos": nanos}, **self.fields(entry))
        return bytes(message.SerializeToString())

    def parse(self, data: Buffer) -> EntryT:
        """Return the entry of a message.

        Raises:
            EpisodeError: If it is not one.
        """
        try:
            return self.build(self.message.FromString(data))
        except (DecodeError, ValueError) as err:
            raise EpisodeError(f"a message on {self.topic} cannot be read: {err}") from err


def _event_fields(event: EpisodeEvent) -> dict[str, Any]:
    return {
        "host_ns": event.host_ns,
        "kind": event.kind,
        "stream": event.stream,
        "detail": event.detail,
        "fields": [{"key": key, "value": value} for key, value in event.fields.items()],
    }


def _build_event(found: Any) -> EpisodeEvent:
    fields = {pair.key: pair.value for pair in found.fields}
    return EpisodeEvent(found.host_ns, found.kind, found.stream, found.detail, fields)


def _base_fields(base: BaseReading) -> dict[str, Any]:
    return {
        "raw_ns": base.raw_ns,
        "monotonic_ns": base.monotonic_ns,
        "realtime_ns": base.realtime_ns,
        "tai_ns": base.tai_ns,
        "bracket_ns": base.bracket_ns,
    }


def _build_base(found: Any) -> BaseReading:
    return BaseReading(found.raw_ns, found.monotonic_ns, found.realtime_ns, found.tai_ns, found.bracket_ns)


def _model_fields(entry: RecordedModel) -> dict[str, Any]:
    model = entry.model
    return {
        "stream": entry.stream,
        "instance": entry.instance,
        "host_ns": entry.host_ns,
        "epoch": model.epoch,
        "method": model.method,
        "ref_ticks": model.ref_ticks,
        "ref_host_ns": model.ref_host_ns,
        "ns_per_tick": model.ns_per_tick,
        "skew_ppm": model.skew_ppm,
        "statistical_ns": model.uncertainty.statistical_ns,
        "floor_ns": model.uncertainty.floor_ns,
        "asymmetry_ns": model.uncertainty.asymmetry_ns,
    }


def _build_model(found: Any) -> RecordedModel:
    uncertainty = Uncertainty(found.statistical_ns, found.floor_ns, found.asymmetry_ns)
    model = ClockModel(
        found.epoch,
        found.method,
        found.ref_ticks,
        found.ref_host_ns,
        found.ns_per_tick,
        found.skew_ppm,
        uncertainty,
    )
    return RecordedModel(found.stream, found.instance, found.host_ns, model)


def _row_fields(row: SyncRow) -> dict[str, Any]:
    matches = [
        schemas.SyncMatchMessage(
            stream=match.stream,
            outcome=match.outcome.value,
            seq=-1 if match.seq is None else match.seq,
            residual_ns=match.residual_ns,
            gap_ns=match.gap_ns,
            bound_ns=match.bound_ns,
        )
        for match in row.matches
    ]
    return {"tick_seq": row.tick_seq, "tick_host_ns": row.tick_ns, "matches": matches}


def _build_row(found: Any) -> SyncRow:
    matches = tuple(
        Matched(
            match.stream,
            Match(match.outcome),
            None if match.seq < 0 else match.seq,
            match.residual_ns,
            match.gap_ns,
            match.bound_ns,
        )
        for match in found.matches
    )
    return SyncRow(found.tick_seq, found.tick_host_ns, matches)


EVENTS: EntryFormat[EpisodeEvent] = EntryFormat(
    "/sensorium/events", schemas.EventMessage, lambda event: event.host_ns, _event_fields, _build_event
)
BASES: EntryFormat[BaseReading] = EntryFormat(
    "/sensorium/clock_bases", schemas.ClockBaseMessage, lambda base: base.raw_ns, _base_fields, _build_base
)
MODELS: EntryFormat[RecordedModel] = EntryFormat(
    "/sensorium/clock_models",
    schemas.ClockModelMessage,
    lambda entry: entry.host_ns,
    _model_fields,
    _build_model,
)
ROWS: EntryFormat[SyncRow] = EntryFormat(
    "/sensorium/rows", schemas.SyncRowMessage, lambda row: row.tick_ns, _row_fields, _build_row
)
ALL_ENTRIES: tuple[EntryFormat[Any], ...] = (ROWS, EVENTS, BASES, MODELS)
