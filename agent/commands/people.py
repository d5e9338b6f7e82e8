"""Says before a replay which of its streams count as personal, and why."""

from collections.abc import Iterable, Iterator, Sequence

from sensorium.agent.commands.terminal import tell
from sensorium.drivers.frame import StreamInfo
from sensorium.sync.episode.personal import PERSONAL_BECAUSE, SAID_NOT_PERSONAL


def tell_personal(streams: Sequence[StreamInfo]) -> None:
    """Say one sentence per reason, on stderr; streams of an episode of ours keep what was said of them."""
    by_reason: dict[str, list[str]] = {}
    for info in streams:
        if info.is_personal:
            by_reason.setdefault(why_personal(info), []).append(info.name)
    for reason, names in by_reason.items():
        tell(f"recorded as personal because {reason}: {', '.join(names)}")
    for sentence in said_not_personal(streams):
        tell(sentence)


def why_personal(info: StreamInfo) -> str:
    """Return how the sentence "recorded as personal because" ends."""
    return info.details.get(PERSONAL_BECAUSE) or f"its {info.modality.value} may show people"


def said_not_personal(streams: Iterable[StreamInfo]) -> Iterator[str]:
    """Yield a sentence for each stream that somebody said is not personal, against its kind."""
    for info in streams:
        said = info.details.get(SAID_NOT_PERSONAL)
        if said:
            yield f"{info.name} is recorded as not personal: {said}"
