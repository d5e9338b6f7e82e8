"""What `sensorium export` does."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sensorium.agent.commands import display
from sensorium.agent.commands.output import print_json, say
from sensorium.agent.exporting.exporter import Export, Progress, export_episode
from sensorium.sync.reading.locate import locate
from sensorium.sync.reading.rights import consent_of
from sensorium.timebase import HostClock


def run_export(
    episode: str | Path, to: str, folder: Path, streams: Sequence[str], consent: Path | None, as_json: bool
) -> int:
    """Write an episode in another format and say what lies where.

    Args:
        episode: As :func:`sensorium.sync.reading.locate.locate` takes it.
        consent: Folder of the grants; None = that of the spool which the episode lies in, or of a delivered copy
            the signed state beside it.

    Raises:
        SensoriumError: As :func:`sensorium.agent.exporting.exporter.export_episode`.
    """
    located = locate(episode)
    known = consent_of(located, consent)
    with display.Progress("export", as_json) as shown:

        def show(progress: Progress) -> None:
            shown.show_share(f"{progress.done} of {progress.total} samples", progress.done, progress.total)

        now_ns = HostClock().utc_ns()
        export = export_episode(located.folder, to, folder, known, now_ns, streams, show, consent)
    if as_json:
        print_json({"folder": str(folder), **asdict(export)})
    else:
        _print_export(folder, export)
    return 0


def _print_export(folder: Path, export: Export) -> None:
    samples = ", ".join(f"{name} {count}" for name, count in export.streams.items())
    say(f"{folder}: {export.episode} as {export.to}; samples: {samples}")
    if export.left_out:
        say(f"left out: {', '.join(export.left_out)}")
