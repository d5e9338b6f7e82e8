"""What follows from the checker's verdicts: they are booked, and a failed one acts as the rig file says."""

from collections.abc import Sequence
from typing import Protocol

from sensorium.sync.recording.check_book import CheckBook, CheckMessage
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.sync.recording.open_episode import OpenEpisode
from sensorium.sync.recording.permit import Permit
from sensorium.verdict import Status


class Episodes(Protocol):
    """What the policy may do with episodes."""

    @property
    def episode(self) -> OpenEpisode | None:
        """The open episode."""

    def start(self) -> str:
        """Open an episode unless one is open."""

    def stop(self) -> str | None:
        """Close the open episode."""

    def disarm(self) -> None:
        """Open no further episode by itself."""

    def event(self, kind: str, stream: str, detail: str, fields: dict[str, str] | None = None) -> None:
        """Write down that something happened."""


class CheckPolicy:
    """Books verdicts by the episode that they judged; warns, splits or stops."""

    def __init__(
        self,
        on_failed: str,
        permit: Permit,
        episodes: Episodes,
        at_start: Sequence[JudgedWindow] = (),
    ) -> None:
        """``at_start`` was judged before the session; it is booked in every episode, and acts on none."""
        self.book = CheckBook()
        self._at_start = at_start
        self.permit = permit
        self._on_failed = on_failed
        self._episodes = episodes

    def begun(self) -> None:
        """Book for an episode that has just begun what was judged before the session."""
        for window in self._at_start:
            self.book.add(window)
            self._note_window(window, "")
        self.book.note(self._at_start)

    def take(self, message: CheckMessage, now_utc_ns: int) -> None:
        """Keep verdicts for the manifest of the episode that they judged; act as the rig says.

        A verdict that comes after its episode was closed is an event of the next one, and no part of its manifest.
        """
        if message.report is not None:
            self.book.report = message.report
        episode = self._episodes.episode
        is_open = episode is not None and episode.episode_id == message.episode
        for window in message.windows:
            if is_open:
                self.book.add(window)
            self._note_window(window, "" if is_open else message.episode)
        is_new = self.book.note(message.windows)
        failed = [window.verdict for window in message.windows if window.verdict.status is Status.FAILED]
        if not failed or self.permit.is_despite or self._on_failed == "warn":
            return
        reason = "; ".join(f"{each.check} on {each.subject} failed: {each.reasons[0]}" for each in failed)
        if self._on_failed == "stop":
            self._refuse(reason, message.episode, now_utc_ns)
        elif is_new and episode is not None:
            self._split_after(reason, message.episode, is_open)

    def _note_window(self, window: JudgedWindow, closed_episode: str) -> None:
        verdict = window.verdict
        reasons = "; ".join(verdict.reasons)
        late = f" (of episode {closed_episode}, closed before)" if closed_episode else ""
        fields = {
            "check": verdict.check,
            "status": verdict.status.value,
            "start_ns": str(window.start_ns),
            "end_ns": str(window.end_ns),
        }
        detail = f"{verdict.check}: {verdict.status.value}. {reasons}".strip() + late
        self._episodes.event("verdict", verdict.subject, detail, fields)

    def _split_after(self, reason: str, judged: str, is_open: bool) -> None:
        """Begin an episode anew because a check failed, unless another one had begun since."""
        if is_open:
            self._episodes.stop()
            self._episodes.start()
        episode = self._episodes.episode
        assert episode is not None
        began = "began because" if is_open else "began before it was known that"
        sentence = f"{began} in episode {judged} calibration {reason}"
        episode.limitations.append(sentence)
        self._episodes.event("split", "", sentence, {"after": judged})

    def _refuse(self, reason: str, judged: str, now_utc_ns: int) -> None:
        """End the open episode and begin none under this calibration until the operator says so."""
        self.permit.refuse(f"in episode {judged} calibration {reason}", now_utc_ns)
        self._episodes.disarm()
        episode = self._episodes.episode
        if episode is not None:
            episode.limitations.append(f"ended because calibration {reason}")
            self._episodes.stop()
