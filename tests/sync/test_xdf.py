"""XDF files: raw stamps, offsets and resets as evidence; on LabRecorder's own files and on ones made here."""

import contextlib
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sensorium.errors import SourceError
from sensorium.sync.clocks.lsl import LslClock, judge_stamps
from sensorium.sync.sources.opening import open_source
from sensorium.sync.sources.xdf import XdfStream, read_xdf

Seconds = NDArray[np.float64]


def _chunk(tag: int, content: bytes) -> bytes:
    return b"\x04" + struct.pack("<IH", 2 + len(content), tag) + content


def made_xdf(
    path: Path, name: str, rate_hz: float, stamp_s: Seconds, at_s: Seconds, offset_s: Seconds
) -> Path:
    """Write one int32 channel of a made stream as LabRecorder would (XDF 1.0, xdf wiki), each sample stamped."""
    header = (
        f"<info><name>{name}</name><type>made</type><channel_count>1</channel_count>"
        f"<nominal_srate>{rate_hz}</nominal_srate><channel_format>int32</channel_format>"
        "<created_at>0</created_at><hostname>made</hostname></info>"
    )
    number = struct.pack("<I", 1)
    parts = [b"XDF:", _chunk(1, b"<?xml version='1.0'?><info><version>1.0</version></info>")]
    parts.append(_chunk(2, number + header.encode()))
    for first in range(0, len(stamp_s), 100):
        some = stamp_s[first : first + 100]
        rows = b"".join(b"\x08" + struct.pack("<di", at, first + n) for n, at in enumerate(some.tolist()))
        parts.append(_chunk(3, number + b"\x04" + struct.pack("<I", len(some)) + rows))
    for at, offset in zip(at_s.tolist(), offset_s.tolist(), strict=True):
        parts.append(_chunk(4, number + struct.pack("<dd", at, offset)))
    footer = f"<info><first_timestamp>{stamp_s[0]}</first_timestamp></info>"
    path.write_bytes(b"".join([*parts, _chunk(6, number + footer.encode())]))
    return path


def judged(stream: XdfStream) -> LslClock:
    return judge_stamps(stream.stamp_s, stream.offset_at_s, stream.offset_s, stream.rate_hz)


def offsets_of(end_s: float, skew: float, seed: int = 1) -> tuple[Seconds, Seconds]:
    """Return a reading each 5 s of a clock that is 3 s behind and runs off, noise 30 us."""
    at_s = np.arange(0.0, end_s, 5.0)
    noise_s = np.random.default_rng(seed).normal(0, 30e-6, at_s.size)
    return at_s, 3.0 + skew * at_s + noise_s


def test_a_real_file_with_a_reset_and_a_dead_sender(shared_data: Path) -> None:
    """The file, its truth and what pyxdf makes of it: specs/clocks.md 3."""
    markers, biosemi = read_xdf(shared_data / "clock" / "clock_resets.xdf").streams
    assert (markers.label, markers.stamp_s.size) == ("MyMarkerStream", 175)
    assert (biosemi.label, biosemi.stamp_s.size, biosemi.rate_hz, biosemi.channels) == (
        "BioSemi",
        27815,
        100.0,
        8,
    )
    for stream in (markers, biosemi):
        clock = judged(stream)
        assert len(clock.resets) == 1
        assert [(line.live, line.repeats) for line in clock.lines] == [(28, 54), (33, 0)]
        (frozen,) = clock.frozen
        assert (frozen.readings, frozen.samples) == (54, 0)
        assert clock.lines[0].skew * 1e6 == pytest.approx(-5.3, abs=0.2)
        assert clock.lines[1].skew * 1e6 == pytest.approx(-4.35, abs=0.1)
        assert np.all(np.diff(clock.time_s) >= 0), "on the recorder's clock time goes on through the reset"
    assert markers.pyxdf_s is not None
    assert biosemi.pyxdf_s is not None
    assert np.abs(markers.pyxdf_s - judged(markers).time_s).max() == pytest.approx(411e-6, abs=20e-6)
    assert np.abs(biosemi.pyxdf_s - judged(biosemi).time_s).max() == pytest.approx(0.274, abs=0.001)


def test_a_minimal_file_is_moved_by_its_offset_alone(shared_data: Path) -> None:
    data, text = read_xdf(shared_data / "clock" / "minimal.xdf").streams
    assert judged(data).time_s == pytest.approx(data.stamp_s - 0.1)
    assert judged(text).time_s == pytest.approx(text.stamp_s)
    assert np.isnan(judged(text).bound_s).all(), "nobody measured its offset"


def test_streams_without_samples_are_no_error(shared_data: Path) -> None:
    streams = read_xdf(shared_data / "clock" / "empty_streams.xdf").streams
    assert [stream.stamp_s.size for stream in streams] == [0, 10, 1, 0]
    for stream in streams:
        assert judged(stream).time_s.size == stream.stamp_s.size


def test_the_bound_of_a_made_stream_covers_its_true_offset(tmp_path: Path) -> None:
    covered = []
    for seed in range(20):
        stamp_s = np.arange(0.0, 300.0, 0.1)
        at_s, offset_s = offsets_of(300.0, 8e-6, seed)
        path = made_xdf(tmp_path / f"{seed}.xdf", "made", 10.0, stamp_s, at_s, offset_s)
        (stream,) = read_xdf(path).streams
        clock = judged(stream)
        error_s = clock.time_s - (stamp_s + 3.0 + 8e-6 * stamp_s)
        covered.append(float((np.abs(error_s) <= clock.bound_s).mean()))
        assert clock.rate_hz == pytest.approx(10.0)
        assert clock.lines[0].skew == pytest.approx(8e-6, abs=0.4e-6)
    assert np.mean(covered) > 0.85


def test_a_pause_is_a_gap_and_pyxdf_smears_it(tmp_path: Path) -> None:
    """A pause of 2 s at 100 Hz: under pyxdf's 500 samples, so that its one line goes right through it."""
    stamp_s = np.concatenate((np.arange(0, 20, 0.01), np.arange(22, 42, 0.01)))
    path = made_xdf(tmp_path / "pause.xdf", "made", 100.0, stamp_s, *offsets_of(42.0, 0.0))
    (stream,) = read_xdf(path).streams
    clock = judged(stream)
    (gap,) = clock.gaps
    assert gap.duration_s == pytest.approx(2.01, abs=0.02)
    assert gap.lost == pytest.approx(200, abs=2)
    assert clock.rate_hz == pytest.approx(100.0, rel=1e-3)
    assert stream.pyxdf_s is not None
    assert np.abs(stream.pyxdf_s - clock.time_s).max() > 0.5


@pytest.mark.parametrize("repeats", [0, 2, 15])
def test_a_run_of_equal_offsets_is_frozen_from_three_repeats_on(tmp_path: Path, repeats: int) -> None:
    stamp_s = np.arange(0.0, 200.0, 0.1)
    at_s, offset_s = offsets_of(200.0, 8e-6)
    offset_s[20 : 21 + repeats] = offset_s[20]
    path = made_xdf(
        tmp_path / "frozen.xdf", "made", 10.0, stamp_s, at_s[: 21 + repeats], offset_s[: 21 + repeats]
    )
    (stream,) = read_xdf(path).streams
    clock = judged(stream)
    assert len(clock.frozen) == (repeats >= 3)
    if clock.frozen:
        assert clock.frozen[0].readings == repeats
        assert clock.frozen[0].samples == pytest.approx((repeats - 1) * 50, abs=2)
        assert clock.bound_s[-1] > clock.bound_s[0], "further from the last reading less is known"


@pytest.mark.parametrize("content", [b"XDF:", b"XDF:\x01\x02\x03", b"XDF:" + bytes(200)])
def test_a_file_that_holds_nothing_is_an_error_or_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "torn.xdf").write_bytes(content)
    found: Sequence[XdfStream] = ()
    with contextlib.suppress(SourceError):
        found = read_xdf(tmp_path / "torn.xdf").streams
    assert not found


def test_without_pyxdf_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyxdf", None)
    with pytest.raises(SourceError, match=r"pip install 'sensorium\[xdf\]'"):
        read_xdf(tmp_path / "any.xdf")


def test_a_replay_of_xdf_says_what_can_be_done_instead(tmp_path: Path) -> None:
    path = made_xdf(tmp_path / "made.xdf", "made", 10.0, np.arange(3.0), np.arange(3.0), np.arange(3.0))
    with pytest.raises(SourceError, match="`sensorium sync report` reads its clocks"):
        open_source(path)
