#!/bin/sh
# Belief: asking PyAV for a decoder by the codec's own name ("av1", as a container or a stream announces it) gives the
# decoder that PyAV itself would take for such a stream, as "h264" and "hevc" do.
#
# Seen with av 18.1.0 (its Linux x86_64 wheel, FFmpeg 8), CPython 3.11, a machine without a video card: eight frames
# encoded by libsvtav1 into an MP4.
#   av.open(...).streams.video[0].codec_context.codec.name is "libdav1d", which decodes all eight.
#   av.CodecContext.create("av1", "r") is another decoder of that very name, which only drives hardware:
#   it is created without complaint and raises NotImplementedError (errno 38) at the first packet.
#   The canonical name of libdav1d is "av1" too, so storing what the container says and creating from it later
#   leads to the wrong one. Name "libdav1d".
#
# Prints what each decoder did; exits non-zero if the behaviour is another one.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "av==18.1.0" "numpy<3"
cat >"$work/try.py" <<'PY'
import io
import sys

import av
import numpy as np

av.logging.set_level(av.logging.PANIC)
FRAMES = 8
held = io.BytesIO()
with av.open(held, "w", format="mp4") as out:
    stream = out.add_stream("libsvtav1", rate=30)
    stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
    for k in range(FRAMES):
        picture = np.full((96, 128, 3), 20 * k, np.uint8)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    out.mux(stream.encode(None))
held.seek(0)
with av.open(held) as source:
    taken = source.streams.video[0].codec_context.codec
    announced = taken.canonical_name
    packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]


def decoded(name):
    decoder = av.CodecContext.create(name, "r")
    try:
        return sum(len(decoder.decode(av.Packet(packet))) for packet in packets) + len(decoder.decode(None))
    except NotImplementedError as error:
        return f"NotImplementedError, errno {error.errno}"


outcome = {"taken": taken.name, "announced": announced, "av1": decoded("av1"), "libdav1d": decoded("libdav1d")}
print(outcome)
expected = {"taken": "libdav1d", "announced": "av1", "av1": "NotImplementedError, errno 38", "libdav1d": FRAMES}
sys.exit(outcome != expected)
PY
"$work/venv/bin/python" "$work/try.py" 2>/dev/null
