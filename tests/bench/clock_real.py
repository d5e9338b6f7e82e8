"""Clock estimators on recordings that nobody here made: XDF offsets with a dead sender, LiDAR packets."""

from pathlib import Path
from typing import Any

import numpy as np

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo
from sensorium.sync.clocks.claims import judge_claim, utc_reference
from sensorium.sync.clocks.offsets import OffsetTracker, frozen_runs, live_readings, smooth
from sensorium.sync.clocks.tracker import StreamTracker

SKIP = 4
"""Readings of an epoch before predictions count: two make a line, two more test it."""


def xdf_series(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return times and offsets (ns) of the two streams of clock_resets.xdf; both are of one host."""
    data = np.load(folder / "clock_resets_offsets.npz")
    return {
        name: (data[f"{name}_clock_times"] * 1e9, data[f"{name}_clock_values"] * 1e9)
        for name in ("MyMarkerStream", "BioSemi")
    }


def cross_stream(series: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Fit on one stream's readings and test on the other's live ones (specs/clocks.md 3)."""
    causal: list[float] = []
    offline: list[float] = []
    pairs = (("MyMarkerStream", "BioSemi"), ("BioSemi", "MyMarkerStream"))
    for fitted, tested in pairs:
        at, offset = series[fitted]
        other_at, other_offset = series[tested]
        is_live, epochs = live_readings(other_at, other_offset)
        fit_epochs = live_readings(at, offset)[1]
        lines = smooth(at, offset)
        for number, (epoch, fit_epoch) in enumerate(zip(epochs, fit_epochs, strict=True)):
            tracker = OffsetTracker()
            fed = 0
            for earlier in range(fit_epoch.start):
                tracker.update(float(at[earlier]), float(offset[earlier]))
            fed = fit_epoch.start
            tests = (np.flatnonzero(is_live[epoch]) + epoch.start)[SKIP:]
            for index in tests:
                while fed < fit_epoch.stop and at[fed] <= other_at[index] + 1e6:
                    tracker.update(float(at[fed]), float(offset[fed]))
                    fed += 1
                causal.append(other_offset[index] - tracker.offset_at(float(other_at[index]))[0])
            offline.extend(other_offset[tests] - lines[number].offset_at(other_at[tests]))
    frozen = {
        name: [[run.start, run.stop] for run in frozen_runs(values)] for name, (_, values) in series.items()
    }
    return {
        "causal_us": _percentiles(causal),
        "causal_goal_p99_us": 130.0,
        "offline_us": _percentiles(offline),
        "offline_goal_p99_us": 112.0,
        "tests": len(causal),
        "frozen_runs": frozen,
        "epochs": len(lines),
        "skew_ppm": [line.skew * 1e6 for line in smooth(*series["MyMarkerStream"])],
    }


def pyxdf_cross_stream(folder: Path) -> dict[str, float] | None:
    """Return the same test for pyxdf as it is; None where it is not installed.

    Its correction is read off its own result: corrected minus raw stamps is its line at those stamps.
    """
    try:
        import pyxdf
    except ImportError:
        return None
    path = str(folder / "clock_resets.xdf")
    raw, _ = pyxdf.load_xdf(path, synchronize_clocks=False, dejitter_timestamps=False)
    fixed, _ = pyxdf.load_xdf(path, synchronize_clocks=True, dejitter_timestamps=False)
    series = xdf_series(folder)
    errors: list[float] = []
    shift = {}
    for before, after in zip(raw, fixed, strict=True):
        name = before["info"]["name"][0]
        shift[name] = (before["time_stamps"] * 1e9, (after["time_stamps"] - before["time_stamps"]) * 1e9)
    for fitted, tested in (("MyMarkerStream", "BioSemi"), ("BioSemi", "MyMarkerStream")):
        at, moved = shift[fitted]
        other_at, other_offset = series[tested]
        is_live, epochs = live_readings(other_at, other_offset)
        edges = [0, *(np.flatnonzero(np.diff(at) < 0) + 1).tolist(), at.size]
        for number, epoch in enumerate(epochs):
            part = slice(edges[number], edges[number + 1])
            line = np.polyfit(at[part] - at[part][0], moved[part], 1)
            tests = (np.flatnonzero(is_live[epoch]) + epoch.start)[SKIP:]
            errors.extend(other_offset[tests] - np.polyval(line, other_at[tests] - at[part][0]))
    return _percentiles(errors)


def lidar(host_ns: Any, device_us: Any, modulus: int | None) -> dict[str, Any]:
    """Track a LiDAR's packets and judge its clock as if it claimed to be synchronised."""
    info = StreamInfo(
        "lidar",
        Modality.LIDAR,
        Encoding.JPEG,
        1e9 / float(np.median(np.diff(host_ns))),
        "lidar",
        DeviceClock(ClockKind.PTP, 1000, 1, modulus),
        Latency(0, 1_000_000, 1_000_000_000),
    )
    tracker = StreamTracker(info)
    captures = []
    for index in range(host_ns.size):
        frame = Frame("lidar", index, 1, device_us[index : index + 1], host_ns[index : index + 1], b"")
        captures.append(int(tracker.update(frame).capture_ns[0]))
    model, line = tracker.model, tracker.line
    assert model is not None
    assert line is not None
    # The captures' arrival stamps are the capturing host's UTC.
    verdict = judge_claim(info, model, line, utc_reference(0, int(host_ns[-1])))
    excess_us = (host_ns - np.array(captures)) / 1e3
    return {
        "status": verdict.status.value,
        "reason": " ".join(verdict.reasons),
        "excess_p50_us": float(np.percentile(excess_us[32:], 50)),
        "excess_p99_us": float(np.percentile(excess_us[32:], 99)),
        "resets": len({event.host_ns for event in tracker.take_events() if event.kind.value == "reset"}),
    }


def vlp16(folder: Path) -> dict[str, Any]:
    data = np.load(folder / "clock" / "lidar_oneway_vlp16.npz")
    return lidar(data["host_ns"], data["dev_us"], 3_600_000_000)


def xt32(folder: Path) -> dict[str, Any] | None:
    """The date and microseconds stand in the tail of each Hesai packet; arrival is the capture's stamp."""
    try:
        import dpkt
    except ImportError:
        return None
    host, device = [], []
    with (folder / "hesai_xt32" / "xt32.pcap").open("rb") as file:
        for stamp, data in dpkt.pcap.Reader(file):
            payload = bytes(dpkt.ethernet.Ethernet(data).data.data.data)
            if len(payload) != 1080:
                continue
            tail = payload[-XT32_TAIL:]
            year, month, day, hour, minute, second = tail[XT32_DATE : XT32_DATE + 6]
            day_s = np.datetime64(f"{1900 + year:04d}-{month:02d}-{day:02d}", "s").astype(np.int64)
            seconds = int(day_s) + 3600 * hour + 60 * minute + second
            micros = int.from_bytes(tail[XT32_MICROS : XT32_MICROS + 4], "little")
            host.append(round(stamp * 1_000_000_000))
            device.append(seconds * 1_000_000 + micros)
    return lidar(np.array(host, np.int64), np.array(device, np.int64), None)


XT32_TAIL = 15
"""The tail of a Hesai XT32 packet ends with date and time (6 bytes), microseconds (4), model (1), number (4)."""
XT32_DATE = 0
XT32_MICROS = 6


def _percentiles(errors_ns: Any) -> dict[str, float]:
    absolute = np.abs(np.asarray(errors_ns)) / 1e3
    return {f"p{q}": float(np.percentile(absolute, q)) for q in (50, 99, 100)}


def real_results(shared: Path) -> dict[str, Any]:
    """Return everything under the key ``real``; empty where the recordings are absent."""
    if not (shared / "clock").is_dir():
        return {}
    found: dict[str, Any] = {"clock_resets.xdf": cross_stream(xdf_series(shared / "clock"))}
    found["clock_resets.xdf"]["pyxdf_us"] = pyxdf_cross_stream(shared / "clock")
    found["vlp16"] = vlp16(shared)
    found["xt32"] = xt32(shared)
    return found


def print_results(found: dict[str, Any]) -> None:
    if not found:
        print("\nreal recordings: not on this machine")
        return
    xdf = found["clock_resets.xdf"]
    print(f"\nclock_resets.xdf, cross-stream test, {xdf['tests']} readings; us p50 / p99 / max")
    for name, goal in (("causal", 130), ("offline", 112), ("pyxdf", 0)):
        row = xdf[f"{name}_us"]
        if row is None:
            print(f"  {name:8} not installed")
            continue
        print(
            f"  {name:8} {row['p50']:6.1f} {row['p99']:6.1f} {row['p100']:6.1f}"
            + (f"   goal {goal}" if goal else "")
        )
    print(f"  frozen runs {xdf['frozen_runs']}, skew per epoch {xdf['skew_ppm']} ppm")
    for name in ("vlp16", "xt32"):
        row = found[name]
        if row is not None:
            print(
                f"{name}: {row['status']}: {row['reason']}; excess over the envelope p50 {row['excess_p50_us']:.1f},"
                f" p99 {row['excess_p99_us']:.1f} us; resets {row['resets']}"
            )
