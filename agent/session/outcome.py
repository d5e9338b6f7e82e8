"""What a session came to: one document for machines, the same shape for demo, record and replay."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.session.summary import machine_too_slow, summarize
from sensorium.errors import EpisodeError
from sensorium.simulators.truth import load_truth
from sensorium.sync.episode.files import DATA_FILE, MANIFEST_FILE
from sensorium.sync.episode.folder import file_in
from sensorium.sync.episode.manifest import Manifest, StreamRecord, read_manifest
from sensorium.sync.episode.personal import PERSONAL_BECAUSE
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict, worst

START_UP_NS = 5 * SECOND_NS
"""Clock errors of a stream's first five seconds are reported apart: the estimator has just begun."""


@dataclass(frozen=True, slots=True)
class ClockTruth:
    """How capture times compare with a simulator's truth; microseconds."""

    error_p99_us: float | None
    error_max_us: float | None
    start_up_p99_us: float | None
    coverage: float | None
    """Share of samples whose error lies within the stated 95 % bound, after the start-up."""
    after_arrival: int
    samples: int


@dataclass(slots=True)
class SessionResult:
    """What the runner of a session hands on; ``fault`` says why capture stopped by itself, if it did."""

    episodes: list[Path]
    run_dir: Path
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    fault: str = ""
    verification: dict[str, Any] = field(default_factory=dict)
    report: Path | None = None


def measure_clocks(folder: Path, run_dir: Path) -> dict[str, ClockTruth]:
    """Return the clock errors of each stream of a sealed episode for which a truth exists."""
    truths = load_truth(run_dir)
    found: dict[str, _Errors] = {}
    with Episode(folder) as episode:
        names = [name for name in episode.streams if name in truths]
        if not names:
            return {}
        lookups = {name: _TruthLookup(truths[name]) for name in names}
        for name, row in episode.stamps(names):
            stamped = row.stamped
            truth_ns = lookups[name].find(row.instance, row.seq, row.count, len(stamped.capture_ns))
            errors = found.setdefault(name, _Errors())
            bound_ns = stamped.uncertainty.bound95_ns
            errors.add(stamped.capture_ns, row.arrival_ns, truth_ns, bound_ns)
    return {name: errors.summary() for name, errors in found.items()}


class _TruthLookup:
    """True capture times by (instance, sequence number). A restarted driver's rows begin again at zero."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        starts = np.flatnonzero(np.diff(rows[:, 0]) < 0) + 1
        self._segments = [dict(segment.tolist()) for segment in np.split(rows, starts)]
        self._instances: list[int] = []

    def find(self, instance: int, seq: int, count: int, stamps: int) -> NDArray[np.float64]:
        """Return (stamps,) true times in ns; NaN where the truth does not say."""
        if instance not in self._instances:
            self._instances.append(instance)
        index = self._instances.index(instance)
        if index >= len(self._segments):
            return np.full(stamps, np.nan)
        segment = self._segments[index]
        numbers = range(seq, seq + (count if stamps == count else 1))
        return np.array([segment.get(number, np.nan) for number in numbers], float)


class _Errors:
    def __init__(self) -> None:
        self._parts: list[NDArray[np.float64]] = []
        self._after_arrival = 0

    def add(
        self,
        capture_ns: NDArray[np.int64],
        arrival_ns: NDArray[np.int64],
        truth_ns: NDArray[np.float64],
        bound_ns: float,
    ) -> None:
        error = capture_ns - truth_ns
        self._parts.append(np.stack([capture_ns.astype(float), error, np.full(len(error), bound_ns)], axis=1))
        self._after_arrival += int(np.sum(capture_ns > arrival_ns))

    def summary(self) -> ClockTruth:
        rows = np.concatenate(self._parts)
        rows = rows[~np.isnan(rows[:, 1])]
        if not len(rows):
            return ClockTruth(None, None, None, None, self._after_arrival, 0)
        error_us = np.abs(rows[:, 1]) / 1e3
        is_late = rows[:, 0] >= rows[0, 0] + START_UP_NS
        settled, early = error_us[is_late], error_us[~is_late]
        covered = np.abs(rows[is_late, 1]) <= rows[is_late, 2]
        return ClockTruth(
            _percentile(settled, 99),
            float(settled.max()) if len(settled) else None,
            _percentile(early, 99),
            float(covered.mean()) if len(covered) else None,
            self._after_arrival,
            len(rows),
        )


def _percentile(values: NDArray[np.float64], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def document(result: SessionResult) -> dict[str, Any]:
    """Return the document that ``--json`` prints.

    Raises:
        EpisodeError: If an episode that is there cannot be read.
    """
    read = [each for folder in result.episodes if (each := _read(folder, result.run_dir)) is not None]
    manifests = [each.manifest for each in read]
    streams = _streams(manifests, [each.truth for each in read])
    slow = machine_too_slow(result.run_dir)
    here = [each.folder for each in read]
    taken = [folder.name for folder in result.episodes if folder not in here]
    return {
        "episodes": [str(folder) for folder in here],
        "taken_away": taken,
        "streams": streams,
        "alignment": _alignment(manifests),
        "calibration": _calibration(manifests),
        "clocks": _clocks(manifests),
        "consent": _consent(manifests),
        "quality": _quality(manifests, bool(taken)),
        "verification": result.verification or {"status": "not uploaded"},
        "machine_too_slow": slow,
        "summary": summarize(
            streams,
            slow,
            simulated=_is_simulated(manifests),
            upload=str(result.verification.get("status", "")),
        ),
        "limitations": sorted({text for manifest in manifests for text in manifest.limitations}),
        "warnings": [*result.warnings, *_about(taken)],
        "problems": result.problems,
        "bytes_on_disk": sum(file.bytes for manifest in manifests for file in manifest.files),
        "report": str(result.report) if result.report else None,
    }


@dataclass(frozen=True, slots=True)
class _Read:
    folder: Path
    manifest: Manifest
    truth: dict[str, ClockTruth]


def _read(folder: Path, run_dir: Path) -> _Read | None:
    """Return what the document needs of an episode; None if somebody took it away since it was sealed."""
    try:
        return _Read(folder, read_manifest(folder), measure_clocks(folder, run_dir))
    except (EpisodeError, OSError):
        if all(file_in(folder, name).exists() for name in (MANIFEST_FILE, DATA_FILE)):
            raise
        return None


def _about(taken: Sequence[str]) -> list[str]:
    """Return what is to be said of sealed episodes that are not there any more."""
    if not taken:
        return []
    return [f"sealed and taken away before the session ended, so not counted here: {', '.join(taken)}"]


def _is_simulated(manifests: Sequence[Manifest]) -> bool:
    infos = [record.info for manifest in manifests for record in manifest.streams]
    return bool(infos) and all(info.is_synthetic for info in infos)


def _streams(
    manifests: Sequence[Manifest], truths: Sequence[Mapping[str, ClockTruth]]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for manifest, truth in zip(manifests, truths, strict=True):
        for record in manifest.streams:
            row = found.setdefault(record.info.name, _empty_row(record))
            _add_record(row, record)
            if record.info.name in truth:
                _add_truth(row, truth[record.info.name])
    return found


def _empty_row(record: StreamRecord) -> dict[str, Any]:
    return {
        "modality": record.info.modality.value,
        "produced": 0,
        "recorded": 0,
        "dropped": {},
        "dropped_reasons": {},
        "rate_hz": None,
        "clock_skew_ppm": None,
        "clock_uncertainty_p95_us": None,
        "unmatched": {},
        "bytes_raw": 0,
        "bytes_stored": 0,
        "consent": record.consent.decision,
        "is_personal": record.info.is_personal,
        "personal_because": record.info.details.get(PERSONAL_BECAUSE, ""),
        "produced_by": record.produced_by,
    }


def _add_record(row: dict[str, Any], record: StreamRecord) -> None:
    total = record.total
    row["produced"] += total.produced
    row["recorded"] += total.recorded
    for place, reasons in total.dropped.items():
        row["dropped"][place] = row["dropped"].get(place, 0) + sum(reasons.values())
        known = row["dropped_reasons"].setdefault(place, {})
        for reason, count in reasons.items():
            known[reason] = known.get(reason, 0) + count
    row["unmatched"] = dict(Counter(row["unmatched"]) + Counter(record.unmatched))
    row["bytes_raw"] += record.bytes_raw
    row["bytes_stored"] += record.bytes_stored
    for key, value in (
        ("rate_hz", record.rate_hz),
        ("clock_skew_ppm", record.clock.skew_ppm),
        ("clock_uncertainty_p95_us", record.clock.uncertainty_p95_us),
    ):
        row[key] = value if value is not None else row[key]


def _add_truth(row: dict[str, Any], truth: ClockTruth) -> None:
    row["clock_error_p99_us"] = truth.error_p99_us
    row["clock_error_max_us"] = truth.error_max_us
    row["clock_error_start_up_p99_us"] = truth.start_up_p99_us
    row["clock_bound_coverage"] = truth.coverage
    row["capture_after_arrival"] = truth.after_arrival


def _alignment(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Return each pair once; over several episodes the worst of each number."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in (pair for manifest in manifests for pair in manifest.pairs):
        row = found.setdefault(
            (pair.a, pair.b), {"reference": pair.a, "stream": pair.b, "method": pair.method}
        )
        for key, value in (("p50_us", pair.p50_us), ("p95_us", pair.p95_us), ("max_us", pair.max_us)):
            row[key] = max(value, row.get(key, value))
    return list(found.values())


def _calibration(manifests: Sequence[Manifest]) -> dict[str, Any]:
    verdicts = [verdict for manifest in manifests for verdict in manifest.calibration.verdicts]
    reasons = _reasons(verdicts) if verdicts else ["no calibration check ran"]
    return {
        "status": worst(verdicts).value,
        "id": next((manifest.calibration.id for manifest in manifests if manifest.calibration.id), ""),
        "reasons": reasons,
        "checks": [
            {**verdict.document(), **_windows(manifest, verdict)}
            for manifest in manifests
            for verdict in manifest.calibration.verdicts
        ],
    }


def _reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the reasons, each once; those of the status that they add up to come first."""
    decisive = worst(verdicts)
    ordered = sorted(verdicts, key=lambda verdict: verdict.status is not decisive)
    return list(dict.fromkeys(reason for verdict in ordered for reason in verdict.reasons))


def _windows(manifest: Manifest, verdict: Verdict) -> dict[str, Any]:
    """Return when a live verdict's window was captured and how all windows came out; {} without one."""
    started_ns = manifest.start_utc_ns - manifest.timeline.utc_minus_host_ns
    for found in manifest.calibration.checks:
        if (found.check, found.subject) == (verdict.check, verdict.subject):
            alarm_ns = found.first_alarm_ns
            return {
                "from_s": (found.start_ns - started_ns) / SECOND_NS,
                "to_s": (found.end_ns - started_ns) / SECOND_NS,
                "windows": dict(found.windows),
                "first_alarm_s": None if alarm_ns is None else (alarm_ns - started_ns) / SECOND_NS,
            }
    return {}


def _clocks(manifests: Sequence[Manifest]) -> dict[str, Any]:
    verdicts = [verdict for manifest in manifests for verdict in manifest.clocks]
    return {
        "status": worst(verdicts).value,
        "reasons": _reasons(verdicts) if verdicts else ["no clock was checked"],
        "checks": [verdict.document() for verdict in verdicts],
    }


def _consent(manifests: Sequence[Manifest]) -> dict[str, str]:
    for manifest in manifests:
        for record in manifest.streams:
            if record.consent.decision not in ("allowed", "not personal"):
                reason = f"{record.info.name}: {record.consent.reason}"
                return {"decision": "deny", "reason": reason}
    personal = [r for manifest in manifests for r in manifest.streams if r.info.is_personal]
    if not personal:
        return {"decision": "allow", "reason": "no stream is personal"}
    return {"decision": "allow", "reason": personal[0].consent.reason}


def _why(manifest: Manifest) -> tuple[str, ...]:
    """Return the reasons of a quality that is not ok; a manifest of others may give none."""
    is_ok = manifest.quality.status is Status.OK
    return manifest.quality.reasons or (() if is_ok else ("the manifest gives no reason",))


def _quality(manifests: Sequence[Manifest], is_partial: bool) -> dict[str, Any]:
    gates = [gate for manifest in manifests for gate in manifest.gates]
    verdicts = [
        Verdict("quality", manifest.episode_id, manifest.quality.status, (), _why(manifest))
        for manifest in manifests
    ]
    status = worst([*verdicts, *gates])
    reasons = _reasons([*verdicts, *gates])
    nothing = "no episode is left to judge" if is_partial else "nothing was recorded"
    return {"status": status.value, "reasons": reasons or ([] if manifests else [nothing])}


def why_not_good(found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each verdict that stands against the session, as :func:`exit_code` counts them."""
    said = [
        f"{name} {found[name]['status']}: {_reasons_of(found[name])}"
        for name in ("quality", "calibration", "clocks")
        if found[name]["status"] == Status.FAILED.value
    ]
    if found["consent"]["decision"] == "deny":
        said.append(f"consent denied: {found['consent']['reason']}")
    verification = found["verification"]
    if verification["status"] not in ("verified", "not uploaded", "pending"):
        reasons = "; ".join(verification.get("reasons", ())) or "without a reason"
        said.append(f"upload {verification['status']}: {reasons}")
    return said


def _reasons_of(part: Mapping[str, Any]) -> str:
    checks = [check for check in part.get("checks", ()) if check["status"] == Status.FAILED.value]
    reasons = [reason for check in checks for reason in check["reasons"]] or part.get("reasons", ())
    return "; ".join(reasons) or "without a reason"


def exit_code(found: Mapping[str, Any]) -> int:
    """Return 1 if a verdict stands against the session: quality, calibration, consent, verification."""
    is_bad = (
        not (found["episodes"] or found["taken_away"])
        or found["quality"]["status"] == Status.FAILED.value
        or found["calibration"]["status"] == Status.FAILED.value
        or found["clocks"]["status"] == Status.FAILED.value
        or found["consent"]["decision"] == "deny"
        or found["verification"]["status"] not in ("verified", "not uploaded", "pending")
    )
    return 1 if is_bad else 0
