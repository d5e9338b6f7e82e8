"""The pause in the recorder: by command, log or switch; the episode is cut and the shared memory zeroed."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from pydantic import ValidationError
from synchronizer_bench import Bench

from sensorium.drivers.bus.live import LiveSubscriber
from sensorium.drivers.bus.publisher import BusPublisher
from sensorium.drivers.frame import Encoding, Frame, Latency, Modality, StreamInfo, stamps
from sensorium.sync.consent.grants import EventKind, Purpose, Scope
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.recording.press import PauseSettings, PressFile
from sensorium.timebase import SECOND_NS

HOUR_NS = 3600 * SECOND_NS
PICTURE = b"\xff\xd8" + b"a face" * 20_000
CAMERA = StreamInfo(
    "cam",
    Modality.CAMERA,
    Encoding.JPEG,
    10.0,
    "cam",
    latency=Latency(max_ns=SECOND_NS // 100),
    is_personal=True,
    shape=(480, 640, 3),
)


class Filmed:
    """A camera whose pictures travel through shared memory, recorded under a grant on a virtual clock."""

    def __init__(
        self,
        tmp_path: Path,
        context: zmq.Context[zmq.Socket[bytes]],
        pause: PauseSettings | None = None,
        purposes: tuple[Purpose, ...] = (),
    ) -> None:
        self.bench = Bench(tmp_path, context, ("cam",), pause=pause)
        self.grant = self.bench.grant(*purposes)
        self.camera: BusPublisher = self.bench.driver(CAMERA, 1)
        self._seq = 0
        self.bench.settle(self.camera)

    def film(self, pictures: int) -> None:
        for _ in range(pictures):
            at = stamps(self.bench.clock.now_ns())
            assert self.camera.publish(Frame("cam", self._seq, 1, None, at, PICTURE))
            self._seq += 1
            self.bench.advance(0.1, self.camera)

    def shared_memory(self) -> bytes:
        """Return the part of the ring that so many pictures can have touched."""
        ring = self.camera._purse._ring
        assert ring is not None
        return bytes(ring._view[: 64 * len(PICTURE)])

    def is_wiped(self) -> bool:
        """Return whether nothing of the pictures is left there once the writer has let go of them (soon)."""
        for _ in range(1000):
            if not any(self.shared_memory()):
                return True
            zmq.select([], [], [], 0.005)
            self.bench.advance(0.005, self.camera)
        return False

    def stored(self) -> list[int]:
        """End the session; return how many pictures each episode holds."""
        self.camera.end(linger_s=0.05)
        self.bench.settle()
        self.bench.close()
        counts = []
        for sealed in self.bench.thinker.sealed:
            assert sealed.path is not None
            with Episode(sealed.path) as episode:
                counts.append(sum(1 for _ in episode.frames()))
        return counts


def test_the_episode_is_cut_where_a_pause_begins_and_ends(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    filmed = Filmed(tmp_path, context)
    filmed.film(5)
    filmed.bench.synchronizer.pause("button")
    filmed.film(5)
    filmed.bench.synchronizer.resume("button")
    filmed.film(5)
    before, during, after = filmed.stored()
    assert (before, during) == (5, 0)
    assert 4 <= after <= 5  # the first picture's uncertainty may reach into the pause


def test_a_press_that_only_stands_in_the_log_is_followed(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    filmed = Filmed(tmp_path, context)
    filmed.film(5)
    filmed.bench.store.pause(source="another process")
    filmed.film(5)
    before, during = filmed.stored()
    assert before <= 6  # one that came at the instant of the press, before the log was read again
    assert during == 0


def test_a_pause_without_an_agent_holds_where_the_rig_names_another_consent_folder(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    ConsentStore(tmp_path / "spool" / "consent").pause(source="command line")
    filmed = Filmed(tmp_path, context)
    assert filmed.bench.synchronizer.consent.is_paused
    filmed.film(3)
    assert filmed.bench.synchronizer.resume("command line") == 1
    filmed.film(3)
    before, after = filmed.stored()
    assert before == 0
    assert 2 <= after <= 3


def test_no_picture_stays_in_shared_memory_during_a_pause(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    filmed = Filmed(tmp_path, context)
    filmed.film(5)
    assert b"a face" in filmed.shared_memory()
    filmed.bench.synchronizer.pause("button")
    filmed.bench.advance(0.1, filmed.camera)
    assert filmed.is_wiped()
    filmed.film(3)  # they come, are denied, and leave nothing
    filmed.bench.advance(0.1, filmed.camera)
    assert filmed.is_wiped()
    assert filmed.stored() == [5, 0]


@pytest.mark.parametrize("kind", [EventKind.WITHDRAWN, EventKind.REVOKED])
def test_a_withdrawal_cuts_the_episode_so_that_its_seal_erases_what_it_holds(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], kind: EventKind
) -> None:
    filmed = Filmed(tmp_path, context)
    filmed.film(5)
    first = filmed.bench.synchronizer.episode
    assert first is not None
    filmed.bench.store.withdraw(filmed.grant.id, kind=kind)
    filmed.bench.advance(0.1, filmed.camera)
    second = filmed.bench.synchronizer.episode
    assert second is not None
    assert second.episode_id != first.episode_id
    assert filmed.is_wiped()
    filmed.film(3)
    third = filmed.bench.synchronizer.episode
    assert third is not None
    assert third.episode_id == second.episode_id  # once is enough
    assert filmed.stored() == [0, 0]


def test_a_withdrawal_of_what_the_episode_does_not_hold_cuts_nothing(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    filmed = Filmed(tmp_path, context)
    other = replace(filmed.grant, id=new_ulid(1), subject="sub:b", scope=Scope(("mic*",)))
    filmed.bench.store.grant(other)
    filmed.film(5)
    filmed.bench.store.withdraw(other.id)
    filmed.film(5)
    assert filmed.stored() == [10]


@pytest.mark.parametrize("purposes", [(), (Purpose.LIVE,)])
def test_a_viewer_sees_what_may_be_shown_and_not_what_may_only_be_recorded(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], purposes: tuple[Purpose, ...]
) -> None:
    filmed = Filmed(tmp_path, context, purposes=purposes)
    viewer = LiveSubscriber(f"inproc://live-{id(filmed.bench)}", ("cam",), context)
    filmed.bench.advance(0.1, filmed.camera)
    filmed.film(5)
    seen = viewer.receive(timeout_s=0.2)
    viewer.close()
    assert (seen is not None) is (Purpose.LIVE in purposes)
    assert filmed.stored() == [5]


def test_a_switch_pauses_while_it_is_pressed(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    switch = tmp_path / "value"
    switch.write_text("0\n")
    filmed = Filmed(tmp_path, context, PauseSettings(file=switch))
    filmed.film(3)
    switch.write_text("1\n")
    filmed.bench.advance(0.1, filmed.camera)
    assert filmed.bench.synchronizer.consent.is_paused
    filmed.film(3)
    switch.write_text("0\n")
    filmed.bench.advance(0.1, filmed.camera)
    filmed.film(3)
    before, during, after = filmed.stored()
    assert (before, during) == (3, 0)
    assert 2 <= after <= 3


def test_a_switch_does_not_end_what_somebody_else_pressed(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    switch = tmp_path / "value"
    switch.write_text("1")
    filmed = Filmed(tmp_path, context, PauseSettings(file=switch))
    filmed.bench.synchronizer.pause("button")
    switch.write_text("0")
    filmed.bench.advance(0.1, filmed.camera)
    assert filmed.bench.synchronizer.consent.is_paused
    filmed.stored()


@pytest.mark.parametrize("held", [None, b"", b"\xff\x00", b"2", b"00", b"0 1", b"off"])
def test_a_switch_that_cannot_be_read_counts_as_pressed(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], held: bytes | None
) -> None:
    switch = tmp_path / "value"
    switch.write_text("0")
    filmed = Filmed(tmp_path, context, PauseSettings(file=switch))
    filmed.film(3)
    if held is None:
        switch.unlink()
    else:
        switch.write_bytes(held)
    filmed.bench.advance(0.1, filmed.camera)
    assert filmed.bench.synchronizer.consent.is_paused
    filmed.stored()


def is_pressed(settings: PauseSettings) -> Callable[[], bool]:
    """Return what a switch last told a session; each call reads it once."""
    heard: list[bool] = []

    class Heard:
        def pause(self, source: str) -> int:
            heard.append(True)
            return 0

        def release(self, source: str) -> int:
            heard.append(False)
            return 0

    switch, session = PressFile(settings), Heard()

    def read() -> bool:
        switch.step(session)
        return heard[-1]

    return read


def test_a_switch_may_be_a_file_that_is_there_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    pressed = is_pressed(PauseSettings(file=folder / "private", when="exists"))
    assert not pressed()
    (folder / "private").touch()
    assert pressed()
    (folder / "private").unlink()
    assert not pressed()
    (folder / "private").symlink_to("nowhere")  # it is there, whatever it points to
    assert pressed()
    (folder / "private").unlink()
    assert not pressed()
    folder.rename(tmp_path / "gone")  # nobody can say any more whether it is there
    assert pressed()


@pytest.mark.parametrize("when", ["content", "exists"])
def test_a_switch_on_a_disk_that_goes_or_comes_over_it_counts_as_pressed(tmp_path: Path, when: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "value").write_text("0")  # what lies below the mount says: not pressed
    file = folder / ("value" if when == "content" else "private")
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    try:
        (folder / "value").write_text("0")
        pressed = is_pressed(PauseSettings.model_validate({"file": file, "when": when}))
        assert not pressed()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert pressed()


def test_a_switch_says_in_its_own_words_when_it_is_released(tmp_path: Path) -> None:
    switch = tmp_path / "value"
    settings = {"file": switch, "pressed": "private"}
    for released, word, expected in (
        (None, "private", True),
        (None, "anything", False),
        ("open", "open", False),
        ("open", "anything", True),
    ):
        switch.write_text(f"{word}\n")
        chosen = PauseSettings.model_validate({**settings, "released": released})
        assert is_pressed(chosen)() is expected, (released, word)
    switch.write_text("1")
    assert not is_pressed(PauseSettings(file=switch, pressed="0"))()


@pytest.mark.parametrize(
    "keys", [{"released": "1"}, {"when": "exists", "pressed": "1"}, {"when": "there"}, {"pressed": ""}]
)
def test_a_switch_that_could_not_be_told_apart_is_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        PauseSettings.model_validate({"file": "value", **keys})


def test_a_log_that_cannot_be_trusted_any_more_turns_personal_streams_off(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    filmed = Filmed(tmp_path, context)
    filmed.film(3)
    (filmed.bench.store.folder / "events.jsonl").unlink()
    filmed.film(3)
    assert sum(filmed.stored()) <= 4  # what came within 20 ms of the loss
