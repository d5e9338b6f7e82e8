"""What reading all frames of an episode costs, beside the mcap library's own loop over the same files.

Run: ``python tests/bench/reading.py EPISODE [PURPOSE]``; a demo's episode is the one that README speaks of.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

import sensorium

RUNS = 5


def of_ours(episode: Path, purpose: str) -> int:
    """Read every frame with its stamps; return their number."""
    with sensorium.open(episode, purpose=purpose) as opened:
        return sum(1 for _ in opened)


def of_library(episode: Path, topics: frozenset[str]) -> int:
    """Iterate over every message of all files, undecoded; return how many are frames of streams."""
    found = 0
    for path in sorted(episode.glob("*.mcap")):
        with path.open("rb") as file:
            for _, channel, _ in make_reader(file).iter_messages():
                found += channel.topic in topics
    return found


def of_library_decoded(episode: Path, topics: frozenset[str]) -> int:
    """As :func:`of_library`, with the messages of streams decoded, which our frames are."""
    found = 0
    for path in sorted(episode.glob("*.mcap")):
        with path.open("rb") as file:
            reader = make_reader(file, decoder_factories=[DecoderFactory()])
            found += sum(1 for _ in reader.iter_decoded_messages(topics=sorted(topics)))
    return found


def least_cpu_s(work: Callable[[], int]) -> tuple[float, int]:
    """Return the least processor time of a few runs, and what the last one counted."""
    times_s, found = [], 0
    for _ in range(RUNS):
        begin_s = time.process_time()
        found = work()
        times_s.append(time.process_time() - begin_s)
    return min(times_s), found


def main(episode: Path, purpose: str) -> None:
    with sensorium.open(episode, purpose=purpose) as opened:
        topics = frozenset(f"/{name}" for name in opened.streams)
    ours_s, ours = least_cpu_s(lambda: of_ours(episode, purpose))
    library_s, library = least_cpu_s(lambda: of_library(episode, topics))
    decoded_s, _ = least_cpu_s(lambda: of_library_decoded(episode, topics))
    size = sum(path.stat().st_size for path in episode.glob("*.mcap"))
    print(f"{episode}: {size / 1e6:.1f} MB, {ours} frames by us, {library} by the library")
    print(f"sensorium.open, frames with their times: {ours_s:.3f} CPU s")
    print(f"mcap library, bytes: {library_s:.3f} CPU s, ratio {ours_s / library_s:.2f}")
    print(f"mcap library, decoded: {decoded_s:.3f} CPU s, ratio {ours_s / decoded_s:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "ai:train")
