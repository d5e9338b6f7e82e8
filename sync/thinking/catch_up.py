"""What the thinker would have found, read from an episode's own files: after a lag, a death, or a crash."""

import contextlib
from pathlib import Path

from sensorium.drivers.payloads.table import driver_bytes
from sensorium.sync.align import Aligner
from sensorium.sync.clocks.model import ClockEvent, ClockEventKind, credible_skew_ppm
from sensorium.sync.episode.entries import EVENTS, MODELS, EpisodeEvent, RecordedModel
from sensorium.sync.episode.files import SYNC_FILE
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.sync_file import SyncFile
from sensorium.sync.thinking.sealing import Thoughts
from sensorium.sync.thinking.tally import StreamTally

_SCRATCH = ".sync.old"
CAUGHT_UP = (
    "alignment and rates were found from the files after the recording, because the process that thinks had "
    "lagged or died; clock verdicts cover only what it saw"
)


def catch_up(folder: Path, reference: str, tolerance_ns: int) -> Thoughts:
    """Write ``sync.mcap`` of a finished folder anew and return what it says.

    Clock models and events that were written before are kept: what estimated them is gone.

    Raises:
        EpisodeError: If the files cannot be read, or the disk does not take the new one.
    """
    with Episode(folder) as episode:
        models, events = list(episode.models()), [each for each in episode.events() if _is_of_clock(each)]
        old, scratch = folder / SYNC_FILE, folder / _SCRATCH
        if old.exists():
            old.replace(scratch)
        sync = SyncFile(folder, episode.episode_id, episode.timeline)
        try:
            thoughts = _think_again(episode, sync, Aligner(reference, tolerance_ns), models, events)
            sync.close()
        except BaseException:
            sync.abandon()
            (folder / SYNC_FILE).unlink(missing_ok=True)
            if scratch.exists():
                scratch.replace(old)
            raise
    scratch.unlink(missing_ok=True)
    return thoughts


def _is_of_clock(event: EpisodeEvent) -> bool:
    return event.kind == "clock" and event.fields.get("by") == "thinker"


def _think_again(
    episode: Episode,
    sync: SyncFile,
    aligner: Aligner,
    models: list[RecordedModel],
    events: list[EpisodeEvent],
) -> Thoughts:
    tallies = {name: StreamTally(info) for name, info in episode.streams.items()}
    sizes = {name: driver_bytes(info) for name, info in episode.streams.items()}
    for name, tally in tallies.items():
        if not tally.info.reference_of:
            aligner.declare(episode.streams[name])
    arrival_ns = 0
    for found in episode.frames():
        frame, stamped = found.frame, found.stamped
        tally = tallies[frame.stream]
        size = sizes[frame.stream](frame.payload, frame.count)
        tally.add(frame.count, size, frame.arrival_ns, stamped)
        if not tally.info.reference_of:
            bound_ns = stamped.uncertainty.total95_ns
            aligner.add(frame.stream, frame.seq, frame.count, stamped.capture_ns, bound_ns)
        arrival_ns = max(arrival_ns, int(frame.arrival_ns[-1]))
        for row in aligner.advance(arrival_ns):
            sync.row(row)
    for row in aligner.finish():
        sync.row(row)
    for entry in models:
        sync.add(MODELS, entry)
        if entry.stream in tallies:
            tallies[entry.stream].skew_ppm = credible_skew_ppm(entry.model.skew_ppm)
            tallies[entry.stream].clock_method = entry.model.method
    for event in events:
        sync.add(EVENTS, event)
        if event.stream in tallies:
            tallies[event.stream].note_clock(_clock_events(event))
    return Thoughts(tallies, aligner.results(), limitations=(CAUGHT_UP,))


def _clock_events(event: EpisodeEvent) -> tuple[ClockEvent, ...]:
    with contextlib.suppress(ValueError):
        kind = ClockEventKind(event.fields.get("kind", ""))
        return (ClockEvent(event.stream, kind, event.host_ns, event.detail),)
    return ()


def started_and_ended_ns(thoughts: Thoughts) -> tuple[int, int]:
    """Return the first and the last arrival of what was recorded; zeros without a frame."""
    tallies = [tally for tally in thoughts.tallies.values() if tally.first_arrival_ns is not None]
    if not tallies:
        return 0, 0
    first = min(tally.first_arrival_ns or 0 for tally in tallies)
    return first, max(tally.last_arrival_ns for tally in tallies)
