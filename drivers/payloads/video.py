"""Raw images to video and back, through PyAV (extra ``video``): H.264, H.265, AV1, lossy or (H.264) exact.

One access unit per frame, as ``foxglove.CompressedVideo`` wants it: Annex B (AV1: low-overhead), parameter sets in
every key frame, a key frame a second and wherever one is asked for, no picture that refers to a later one, so that the
order of capture is the order of decoding. The encoders run without look-ahead: each frame leaves with the payload
that it became, nothing is held back, and stamps stay with their frames. The level is the constant quality (CRF): lower
is better and larger.

What it cannot hold: lossy video needs even width and height, and keeps colour at half the resolution (4:2:0, BT.709,
limited range; grey images full range). A picture between key frames is nothing without those before it: readers go
through the frames in order from a key frame on (``StreamDecoder``), and a picture whose predecessor is missing is
refused, never guessed. ``h264_lossless`` is exact for grey, BGR and RGB; its profile (High 4:4:4 Predictive) is not
played by browsers. 16-bit images are none of these: ``depth`` packs them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.annexb import FrameNumbers, is_key_frame
from sensorium.drivers.payloads.codec import ChainedPack, Codec, Pack
from sensorium.drivers.payloads.payload import Buffer, Payload, Restore
from sensorium.drivers.payloads.pyav import import_av
from sensorium.errors import ConfigError, PayloadError

KEY_INTERVAL_S = 1.0
_FALLBACK_RATE_HZ = 30.0
_BT709 = 1
_LIMITED, _FULL = 1, 2
"""Values of AVCOL_SPC_BT709 (primaries and transfer alike), AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG."""
_ARRAY_FORMATS = {Encoding.BGR8: "bgr24", Encoding.RGB8: "rgb24", Encoding.MONO8: "gray"}
_DECODERS = {Encoding.H264: "h264", Encoding.H265: "hevc", Encoding.AV1: "libdav1d"}
"""FFmpeg's own AV1 decoder needs hardware."""

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How an encoder is set up.

    Attributes:
        library: FFmpeg's name of the encoder; ``rgb_library`` the one for exact colour.
        options: From a level to its options.
    """

    library: str
    options: Callable[[int], dict[str, str]]
    is_exact: bool = False
    rgb_library: str = ""


def _x264(level: int) -> dict[str, str]:
    return {"preset": "ultrafast", "tune": "zerolatency", "crf": str(level), "forced-idr": "1"}


def _x264_exact(_level: int) -> dict[str, str]:
    return {"preset": "ultrafast", "tune": "zerolatency", "qp": "0", "forced-idr": "1"}


def _x265(level: int) -> dict[str, str]:
    own = "log-level=none:repeat-headers=1:annexb=1:bframes=0:rc-lookahead=0:pools=none:frame-threads=1"
    return {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "crf": str(level),
        "forced-idr": "1",
        "x265-params": own,
    }


def _svt_av1(level: int) -> dict[str, str]:
    # pred-struct=1: low delay, no picture refers to a later one. lp=1: one thread, a core is for the whole rig.
    return {"preset": "11", "crf": str(level), "svtav1-params": "pred-struct=1:lp=1"}


_H264 = _Kind("libx264", _x264)
_H264_EXACT = _Kind("libx264", _x264_exact, is_exact=True, rgb_library="libx264rgb")
_H265 = _Kind("libx265", _x265)
_AV1 = _Kind("libsvtav1", _svt_av1)


@dataclass(slots=True)
class _Encoder(ChainedPack):
    """Packs the images of one stream; given in order, each becomes one access unit."""

    av: ModuleType
    info: StreamInfo
    kind: _Kind
    level: int
    _context: Any = None
    _reformatter: Any = None
    _index: int = 0
    _wants_key: bool = field(default=True)

    def __call__(self, payload: Buffer, _count: int) -> bytes | None:
        if len(payload) != int(np.prod(self.info.shape)):
            return None
        if self._context is None:
            self._open()
        frame = self._picture(np.frombuffer(payload, np.uint8).reshape(self.info.shape))
        frame.pts, frame.time_base = self._index, self._context.time_base
        if self._wants_key:
            frame.pict_type = self.av.video.frame.PictureType.I
        try:
            packets = [bytes(packet) for packet in self._context.encode(frame)]
        except self.av.FFmpegError:
            packets = []
        if len(packets) != 1:  # begin anew: what comes next must not be taken for this frame
            self._context, self._wants_key = None, True
            return None
        self._index, self._wants_key = self._index + 1, False
        return packets[0]

    def ask_key_frame(self) -> None:
        self._wants_key = True

    @property
    def _is_exact_colour(self) -> bool:
        return self.kind.is_exact and self.info.encoding != Encoding.MONO8

    def _open(self) -> None:
        info, kind = self.info, self.kind
        context = self.av.CodecContext.create(
            kind.rgb_library if self._is_exact_colour else kind.library, "w"
        )
        rate = Fraction(info.rate_hz or _FALLBACK_RATE_HZ).limit_denominator(1000)
        context.height, context.width = info.shape[:2]
        context.framerate, context.time_base = rate, 1 / rate
        context.gop_size = max(1, round(KEY_INTERVAL_S * rate))
        context.max_b_frames, context.thread_count = 0, 1
        context.pix_fmt = _ARRAY_FORMATS[info.encoding] if kind.is_exact else "yuv420p"
        if not self._is_exact_colour:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _FULL if info.encoding == Encoding.MONO8 else _LIMITED
        context.options = kind.options(self.level)
        self._context, self._index = context, 0
        self._reformatter = self.av.video.reformatter.VideoReformatter()

    def _picture(self, image: Image) -> Any:
        make = self.av.VideoFrame.from_ndarray
        if self.kind.is_exact:
            return make(image, format=_ARRAY_FORMATS[self.info.encoding])
        if self.info.encoding == Encoding.MONO8:
            # Brightness as it is, colours in the middle: no conversion, and players know 4:2:0.
            colours = np.full((image.shape[0] // 2, image.shape[1]), 128, np.uint8)
            return make(np.concatenate([image.reshape(image.shape[:2]), colours]), format="yuv420p")
        # Said aloud, because FFmpeg would take BT.601 without a tag, at any size.
        return self._reformatter.reformat(
            make(image, format=_ARRAY_FORMATS[self.info.encoding]),
            format="yuv420p",
            dst_colorspace="ITU709",
            dst_color_range="MPEG",
        )


class _Restorer:
    """Decodes the access units of one stream, given in order; what comes before the first key frame is refused."""

    def __init__(self, av: ModuleType, info: StreamInfo) -> None:
        self._av, self._info = av, info
        self._decoder = _DECODERS[info.encoding]
        self._context: Any = None
        self._numbers = FrameNumbers()

    def __call__(self, payload: Buffer, _count: int) -> bytes:
        if is_key_frame(self._info.encoding, payload):
            self._open()
        elif self._context is None:
            raise PayloadError("a picture between key frames does not decode without those before it")
        try:
            if self._info.encoding == Encoding.H264 and not self._numbers.follow(payload):
                raise PayloadError("the picture before this one is missing")
            frames = self._context.decode(self._av.Packet(bytes(payload)))
        except (self._av.FFmpegError, PayloadError) as err:
            self._context = None
            raise PayloadError(f"{err}; the next key frame decodes again") from err
        if len(frames) != 1:
            self._context = None
            raise PayloadError(
                f"an access unit decoded to {len(frames)} pictures; the next key frame decodes again"
            )
        return self._bytes_of(frames[0])

    def _open(self) -> None:
        """Begin anew, so that a picture never shows what was left of a time before a gap."""
        context = self._av.CodecContext.create(self._decoder, "r")
        context.thread_count = 1  # threads of frames would hold pictures back
        if self._info.encoding == Encoding.AV1:
            context.options = {"max_frame_delay": "1"}
        self._context, self._numbers = context, FrameNumbers()

    def _bytes_of(self, frame: Any) -> bytes:
        wanted = self._info.restores_to
        if wanted == Encoding.MONO8 and (frame.format.name == "gray" or frame.color_range == _FULL):
            plane = frame.planes[0]
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            return rows[: frame.height, : frame.width].tobytes()
        image: Image = frame.to_ndarray(format=_ARRAY_FORMATS[wanted])
        return image.tobytes()


def _declare(info: StreamInfo) -> StreamInfo:
    # Raw size, half as much again for noise that does not compress, and headers.
    return replace(info, max_payload_bytes=int(np.prod(info.shape)) * 3 // 2 + (1 << 16))


def _packer(kind: _Kind, name: str, info: StreamInfo, level: int) -> Pack:
    height, width = info.shape[:2]
    if not kind.is_exact and (height % 2 or width % 2):
        raise ConfigError(
            f"stream {info.name} has images of {width} x {height}: codec {name} needs even sizes; "
            "use h264_lossless, png or jpeg"
        )
    os.environ.setdefault("SVT_LOG", "0")  # it writes to stderr past FFmpeg, which reports its errors
    return _Encoder(import_av(f"codec {name}"), info, kind, level)


def _restorer(info: StreamInfo) -> Restore:
    return _Restorer(import_av(f"video packed as {info.encoding}"), info)


def _codec(name: str, encoding: str, kind: _Kind, level: int | None, levels: tuple[int, int]) -> Codec:
    packer = partial(_packer, kind, name)
    return Codec(name, frozenset(_ARRAY_FORMATS), encoding, kind.is_exact, _declare, packer, level, levels)


CODECS = (
    _codec("h264", Encoding.H264, _H264, 23, (0, 51)),
    _codec("h265", Encoding.H265, _H265, 26, (0, 51)),
    _codec("av1", Encoding.AV1, _AV1, 35, (0, 63)),
    _codec("h264_lossless", Encoding.H264, _H264_EXACT, None, (0, 0)),
)
ROWS = tuple(
    Payload(
        encoding, is_compressed=True, is_chained=True, restores=frozenset(_ARRAY_FORMATS), restorer=_restorer
    )
    for encoding in _DECODERS
)
