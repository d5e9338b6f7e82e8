#!/bin/sh
# Belief: av.logging.set_level(PANIC) keeps an encoder from writing on standard error,
# so that a program whose standard error is read by somebody (a supervisor, a user) stays quiet.
#
# Seen with av 18.1.0 (its Linux x86_64 wheel: x264, x265 4.2, SVT-AV1 4.1.0), CPython 3.11. At every opening, whatever
# FFmpeg's log level is, libsvtav1 and libx265 write twenty lines each of version and settings to file descriptor 2 by
# themselves; libx264 writes none. What silences them differs:
#   libx265: its own option, x265-params "log-level=none"; per encoder.
#   libsvtav1: the environment variable SVT_LOG=1 (errors only), set before the process starts; per process.
#
# Prints the number of lines per encoder; exits non-zero if the behaviour is another one.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "av==18.1.0" "numpy<3"
cat >"$work/try.py" <<'PY'
import sys

import av
import numpy as np

av.logging.set_level(av.logging.PANIC)
encoder = av.CodecContext.create(sys.argv[1], "w")
encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 128, 96, "yuv420p", 30
picture = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
picture.pts = 0
if len(sys.argv) > 2:
    encoder.options = {"x265-params": sys.argv[2]}
assert encoder.encode(picture) + encoder.encode(None)
PY
lines() {
    "$work/venv/bin/python" "$work/try.py" "$@" 2>&1 >/dev/null | wc -l | tr -d ' '
}
unset SVT_LOG
svt=$(lines libsvtav1)
x264=$(lines libx264)
x265=$(lines libx265)
x265_told=$(lines libx265 log-level=none)
svt_told=$(SVT_LOG=1 lines libsvtav1)
echo "libx264 $x264, libsvtav1 $svt, with SVT_LOG=1 $svt_told, libx265 $x265, with log-level=none $x265_told"
[ "$x264" = 0 ] && [ "$svt" -gt 10 ] && [ "$svt_told" = 0 ] && [ "$x265" -gt 10 ] && [ "$x265_told" = 0 ]
