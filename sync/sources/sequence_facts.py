"""Whether the sequence numbers of a writer count messages."""

from dataclasses import dataclass


@dataclass(slots=True)
class SequenceFacts:
    """Whether a writer's sequence numbers can be a counter: they rise in file order, and with time."""

    first: int = 0
    last: int = -1
    last_log_ns: int = 0
    count: int = 0
    is_increasing: bool = True

    @property
    def is_counter(self) -> bool:
        """Numbers that leave out nine of ten are ids of some kind, or damaged: nobody loses that much."""
        return self.is_increasing and self.count > 1 and self.last - self.first < 10 * self.count

    def observe(self, sequence: int, log_ns: int) -> None:
        if self.count == 0:
            self.first = sequence
        elif sequence <= self.last or log_ns < self.last_log_ns:
            self.is_increasing = False
        self.last, self.last_log_ns = sequence, log_ns
        self.count += 1
