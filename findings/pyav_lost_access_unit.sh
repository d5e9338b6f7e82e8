#!/bin/sh
# Belief: a decoder that is handed a stream with one access unit missing says so: it raises, drops frames until the
# next key frame, or marks what it makes up as corrupt. A recorder could then count the damage while reading.
#
# Seen with av 18.1.0 (FFmpeg 8), numpy 2.x, CPython 3.11, Linux x86_64: 40 moving pictures, no B-frames, a key frame
# first, the packet of picture 10 left out.
#   h264: 39 pictures come out, no error, is_corrupt and the decoder's error flag false on every one of them;
#         the last one is off by 17 grey levels on average.
#   hevc: the 10 pictures before the gap come out, and none after it: no reference, no picture.
# So the only witness of a lost H.264 packet is the stream's own frame_num (or a sequence number kept beside it).
#
# Prints one line per codec; exits non-zero if the behaviour is another one.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "av==18.1.0" "numpy<3"
cat >"$work/try.py" <<'PY'
import sys
from fractions import Fraction

import av
import numpy as np

av.logging.set_level(av.logging.PANIC)
COUNT, LOST = 40, 10


def picture(k):
    y, x = np.mgrid[:240, :320]
    grey = 128 + 100 * np.sin((x + 5 * k) / 17) * np.cos((y - 3 * k) / 13)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def packets(name, options):
    encoder = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuv420p"
    encoder.time_base = Fraction(1, 30)
    encoder.gop_size, encoder.max_b_frames = 250, 0
    encoder.options = options
    found = []
    for k in range(COUNT):
        frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24")
        frame.pts = k
        found += encoder.encode(frame)
    return [bytes(packet) for packet in found + encoder.encode(None) if packet.size]


def decoded(name, units):
    decoder = av.CodecContext.create(name, "r")
    frames = []
    for unit in [*units, None]:
        try:
            frames += decoder.decode(None if unit is None else av.Packet(unit))
        except av.error.InvalidDataError:
            frames.append(None)
    return frames


outcome = {}
for name, encoder, options in (
    ("h264", "libx264", {"tune": "zerolatency", "preset": "ultrafast"}),
    ("hevc", "libx265", {"tune": "zerolatency", "preset": "ultrafast", "x265-params": "log-level=none"}),
):
    units = packets(encoder, options)
    assert len(units) == COUNT
    torn = decoded(name, units[:LOST] + units[LOST + 1 :])
    shown = [frame for frame in torn if frame is not None]
    flagged = sum(bool(frame.is_corrupt) for frame in shown)
    wrong = 0.0
    if len(shown) == COUNT - 1:
        last = shown[-1].to_ndarray(format="gray").astype(float)
        wrong = float(np.abs(last - picture(COUNT - 1)[..., 0]).mean())
    outcome[name] = (len(shown), torn.count(None), flagged)
    print(f"{name}: {len(shown)} of {COUNT - 1} pictures, {torn.count(None)} errors, {flagged} flagged, "
          f"last one off by {wrong:.1f} grey levels on average")

h264_is_silent = outcome["h264"] == (COUNT - 1, 0, 0)
hevc_is_not = outcome["hevc"][0] < COUNT - 1 or outcome["hevc"][1] > 0 or outcome["hevc"][2] > 0
sys.exit(0 if h264_is_silent and hevc_is_not else 1)
PY
"$work/venv/bin/python" "$work/try.py"
