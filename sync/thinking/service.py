"""The thinker's process: the notes of the recorder in, maps out; aligned sets for whoever asks; seals.

Run by the supervisor as ``python -m sensorium.sync.thinking.service SPEC.json``. SIGTERM: seal all that is
closed, then end. Killed at any time it costs no sample; the next one catches up from the files.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgpack
import zmq
from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.bus.context import bus_context
from sensorium.errors import SensoriumError
from sensorium.priority import give_way
from sensorium.stopping import is_orphaned, is_recorded, stop_on_sigterm
from sensorium.sync.recording.boundary import remove_sockets
from sensorium.sync.recording.notes import RecorderLink
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.thinking.sealed import report_sealed
from sensorium.sync.thinking.set_messages import pack_set
from sensorium.sync.thinking.sets import AlignedSet, SetRequest, filled
from sensorium.sync.thinking.thinker import Thinker
from sensorium.timebase import SECOND_NS, Clock, HostClock

NICENESS = 5
SET_TIMEOUT_NS = 4 * SECOND_NS
SILENT_NS = SECOND_NS
QUIET_NS = SECOND_NS // 2
_IDLE_MS = 20
_MOST_BATCHES = 16
_REQUEST: TypeAdapter[SetRequest] = TypeAdapter(SetRequest)


class ThinkingService:
    """Feeds the thinker, answers requests for aligned sets, and reports what was sealed."""

    def __init__(self, spec: SyncSpec, context: zmq.Context[zmq.Socket[bytes]], clock: Clock) -> None:
        self._clock = clock
        self._spec = spec
        self._link = RecorderLink(spec.notes_endpoint, context)
        self.thinker = Thinker(spec, clock, self._link.say)
        self._sets = context.socket(zmq.REP)
        self._sets.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        self._sets.bind(spec.sets_endpoint)
        self._poller = zmq.Poller()
        for socket in (self._link.socket, self._sets):
            self._poller.register(socket, zmq.POLLIN)
        self._heard_ns = clock.now_ns()
        self._deadline_ns: int | None = None
        self._found: AlignedSet | None = None
        self._reported = 0
        self._is_stopping = False

    def step(self) -> bool:
        """Do one round; False when we were told to stop and nothing more comes."""
        n_taken = self._take_batches()
        self.thinker.step()
        self._answer_sets()
        self._report_sealed()
        now_ns = self._clock.now_ns()
        if n_taken:
            self._heard_ns = now_ns
        elif now_ns - self._heard_ns > SILENT_NS and not self._is_stopping:
            self._heard_ns = now_ns
            self._link.greet()  # the recorder may be another one now
            self.thinker.seal_left(is_over=False)
            if is_orphaned() and not is_recorded(self._spec.run_dir):
                self.stop()
        if self._is_stopping and now_ns - self._heard_ns > QUIET_NS:
            return False
        if not n_taken:
            self._poller.poll(_IDLE_MS)
        return True

    def _take_batches(self) -> int:
        for taken in range(_MOST_BATCHES):
            batch = self._link.receive()
            if batch is None:
                return taken
            self.thinker.take(batch)
        return _MOST_BATCHES

    def run(self) -> None:
        """Think until :meth:`stop`, then seal all that is closed."""
        while self.step():
            pass
        self.thinker.close()
        self._report_sealed()
        self._sets.close(linger=200)
        self._link.close()

    def stop(self) -> None:
        """End when the recorder has nothing more to say."""
        self._is_stopping = True

    # -- aligned sets

    def _answer_sets(self) -> None:
        """A request stays open (REP has not answered) until a row has all the streams, or 4 s are over."""
        keeper, now_ns = self.thinker.sets, self._clock.now_ns()
        if self._deadline_ns is None and not self._take_request(now_ns):
            return
        assert self._deadline_ns is not None
        if self._found is None:
            self._found = keeper.take(now_ns)
        ready = self._filled() if self._found is not None else None
        if ready is not None:
            self._sets.send(pack_set(ready))
        elif now_ns > self._deadline_ns:
            missing = keeper.missing()
            what = (
                f"nothing is recorded of {', '.join(missing)}" if missing else "no row held all the streams"
            )
            keeper.cancel()
            self._sets.send(msgpack.packb({"error": f"{what} for {SET_TIMEOUT_NS // SECOND_NS} s"}))
        else:
            return
        self._deadline_ns = self._found = None

    def _take_request(self, now_ns: int) -> bool:
        try:
            data = self._sets.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            self.thinker.sets.request(_REQUEST.validate_json(data), now_ns)
        except ValidationError:
            self._sets.send(msgpack.packb({"error": 'a request is {"streams": [names], "beside": [names]}'}))
            return False
        self._deadline_ns = now_ns + SET_TIMEOUT_NS
        return True

    def _filled(self) -> AlignedSet | None:
        """Return the set that was found with its payloads; None while they are not on disk."""
        episode, found = self.thinker.open, self._found
        assert found is not None
        if episode is None or episode.episode_id != found.episode_id:
            return None  # its files are closed: the next row is of another episode
        return filled(found, episode.tail)

    def _report_sealed(self) -> None:
        fresh = self.thinker.sealed[self._reported :]
        report_sealed(self._spec.run_dir, fresh)
        self._reported += len(fresh)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one thinker."""
    (spec_path,) = sys.argv[1:] if argv is None else argv
    spec = SyncSpec.model_validate_json(Path(spec_path).read_text())
    clock = HostClock()
    give_way(NICENESS, clock)
    with bus_context() as context:
        try:
            service = ThinkingService(spec, context, clock)

            stop_on_sigterm(service.stop)
            service.run()
            if is_orphaned():
                remove_sockets(spec.sets_endpoint)
        except SensoriumError as err:
            print(f"thinker: {err}", file=sys.stderr)  # noqa: T201 - the supervisor reads it
            return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
