"""Pictures of a video stream from any instant on: what lies between key frames builds upon those before."""

from collections.abc import Iterator

from sensorium.drivers.frame import VIDEO
from sensorium.drivers.payloads.annexb import is_key_frame
from sensorium.drivers.payloads.payload import AS_STORED, Pixels, View
from sensorium.drivers.payloads.video import KEY_INTERVAL_S
from sensorium.errors import EpisodeError, PayloadError
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.timebase import SECOND_NS


def pictures(
    episode: Episode, stream: str, start_ns: int, end_ns: int, view: View = AS_STORED
) -> Iterator[tuple[RecordedFrame, Pixels | None]]:
    """Yield each frame of a stream that was captured in [start, end), and its pixels as ``StreamDecoder.image``.

    Reading begins at the last key frame before; of streams that are no video at ``start_ns`` itself. None stands
    for a frame that does not decode: damaged, or one before it is missing.

    Args:
        start_ns, end_ns: Host time.

    Raises:
        EpisodeError: If there is no such stream, or a file is damaged.
    """
    if stream not in episode.streams:
        raise EpisodeError(f"{episode.path} has no stream {stream}; it has: {', '.join(episode.streams)}")
    info = episode.streams[stream]
    decoder = StreamDecoder(info)
    for recorded in episode.frames([stream], first_ns(episode, stream, start_ns)):
        capture_ns = int(recorded.stamped.capture_ns[0])
        if capture_ns < start_ns:
            decoder.skip(recorded.frame.payload)
        elif capture_ns < end_ns:
            try:
                yield recorded, decoder.image(recorded.frame.payload, view)
            except PayloadError:
                yield recorded, None
        elif int(recorded.frame.arrival_ns[-1]) >= end_ns + info.latency.max_ns:
            return


def first_ns(episode: Episode, stream: str, start_ns: int) -> int | None:
    """Return from which arrival (host time) on to read, so that a key frame is among it.

    That is one captured at ``start_ns`` or before; None = from the beginning.
    """
    info = episode.streams[stream]
    if info.encoding not in VIDEO:
        return start_ns
    reach_ns = round(KEY_INTERVAL_S * SECOND_NS)
    first = next(iter(episode.stamps([stream])), None)
    earliest_ns = start_ns if first is None else int(first[1].arrival_ns[0])
    while start_ns - reach_ns > earliest_ns:
        for recorded in episode.frames([stream], start_ns - reach_ns):
            if int(recorded.stamped.capture_ns[0]) > start_ns:
                break
            if is_key_frame(info.encoding, recorded.frame.payload):
                return start_ns - reach_ns
        reach_ns *= 2
    return None
