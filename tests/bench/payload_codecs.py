"""The codecs of the driver hosts beside general ones, on the same data in the same run.

    python tests/bench/payload_codecs.py [--only lidar,columns,depth,audio,video] [--rounds N] [--json]

One thread, methods in turn, medians of CPU time: another program's load slows caches, but does not count. Ratios are
against what the peer keeps: LiDAR against PointCloud2 (x, y, z, intensity as float32), numeric streams against float64
rows with stamp and counter, the others against the raw payload. Every exact codec is decoded and compared before it
is timed. docs/codecs.md quotes the table. (Not ``codecs.py``: that name is Python's own.)
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from typing import Any

import codec_inputs as inputs
import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.drivers.payloads import audio, columns, depth, flac, range_image
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.table import packed_as
from sensorium.errors import ConfigError
from sensorium.sync.episode.varints import pack_sint64

Figures = dict[str, Any]
BLOCKS = (10, 100, 1000)
GROUPS = ("lidar", "columns", "depth", "audio", "video")
SOUND = StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48_000.0, "mic", shape=(2,))
BLOCK_SAMPLES = 480
_ZSTD = zstandard.ZstdCompressor(level=1)


def measure(groups: Sequence[str] = GROUPS, rounds: int = 15) -> Figures:
    """Return the figures by group, input and method."""
    makers: dict[str, Callable[[int], Figures]] = {
        "lidar": _lidar,
        "columns": _columns,
        "depth": _depth,
        "audio": _audio,
        "video": _video,
    }
    return {group: makers[group](rounds) for group in groups}


def _each(call: Callable[[bytes], object], blocks: Sequence[bytes]) -> None:
    for block in blocks:
        call(block)


def _seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each call, all of them in turn in every round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(rounds + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if round_index:  # the first one finds cold caches
                taken[name].append(time.process_time() - begin)
    return {name: median(each) for name, each in taken.items()}


def _figure(base_bytes: int, stored_bytes: float, encode_s: float, **more: Any) -> Figures:
    return {
        "ratio": round(base_bytes / stored_bytes, 2),
        "encode_mb_s": round(base_bytes / encode_s / 1e6),
        **more,
    }


# -- LiDAR


def _lidar(rounds: int) -> Figures:
    found: Figures = {}
    for name, scan in inputs.scans():
        layout = range_image.ouster_layout(scan.metadata)
        coded = range_image.encode(scan.packets, layout)
        assert range_image.decode(coded) == scan.packets
        cloud = scan.cloud
        seconds = _seconds(
            {
                "range_image": partial(range_image.encode, scan.packets, layout),
                "decode": partial(range_image.decode, coded),
                "zstd 1 of the points": partial(_ZSTD.compress, cloud),
                "zstd 1 of the packets": partial(_ZSTD.compress, scan.packets),
            },
            rounds,
        )
        figure = partial(_figure, len(cloud))
        found[name] = {
            "range_image": figure(
                len(coded),
                seconds["range_image"],
                decode_mb_s=round(len(cloud) / seconds["decode"] / 1e6),
                ratio_to_packets=round(len(scan.packets) / len(coded), 2),
                is_exact=True,
            ),
            "zstd 1 of the points": figure(len(_ZSTD.compress(cloud)), seconds["zstd 1 of the points"]),
            "zstd 1 of the packets": figure(
                len(_ZSTD.compress(scan.packets)), seconds["zstd 1 of the packets"], is_exact=True
            ),
        }
    return found


# -- numbers


def _columns(rounds: int) -> Figures:
    found: Figures = {}
    for name, rows in inputs.numeric_streams():
        for block in BLOCKS:
            found[f"{name}, blocks of {block}"] = _one_block_size(rows, block, rounds)
    return found


def _one_block_size(rows: inputs.Rows, block: int, rounds: int) -> Figures:
    runs = columns.runs_of(tuple(column.dtype.str for column in rows.columns))
    spans = [(start, start + block) for start in range(0, rows.count - block + 1, block)]
    payloads = [rows.payload(*span) for span in spans]
    coded = [columns.encode(payload, runs) for payload in payloads]
    assert [columns.decode(each, runs) for each in coded] == payloads
    ticks = [pack_sint64(np.diff(np.arange(*span) * 1000, prepend=0))[0] for span in spans]
    floats = [rows.float_rows(*span) for span in spans]
    base_bytes = rows.row_bytes * block * len(spans)
    seconds = _seconds(
        {
            "columns": lambda: [columns.encode(payload, runs) for payload in payloads],
            "zstd 1 of float64 rows": lambda: [_ZSTD.compress(each) for each in floats],
        },
        rounds,
    )
    chunk = max(inputs.RATE_HZ // block, 1)
    stored = _in_chunks([data + stamps for data, stamps in zip(coded, ticks, strict=True)], chunk)
    return {
        "columns": _figure(
            base_bytes,
            stored,
            seconds["columns"],
            bytes_per_row=round(stored / block / len(spans), 2),
            ratio_of_blocks_alone=round(base_bytes / _in_chunks(coded, 1), 2),
            million_rows_s=round(block * len(spans) / seconds["columns"] / 1e6, 2),
            is_exact=True,
        ),
        "integers as they come": {
            "ratio": round(base_bytes / _in_chunks(payloads, chunk), 2),
            "is_exact": True,
        },
        "zstd 1 of float64 rows": _figure(
            base_bytes, _in_chunks(floats, 1), seconds["zstd 1 of float64 rows"], is_exact=True
        ),
    }


def _in_chunks(blocks: Sequence[bytes], each: int) -> int:
    """Return the size of blocks as the writer compresses them, ``each`` of them at once."""
    return sum(
        len(_ZSTD.compress(b"".join(blocks[start : start + each]))) for start in range(0, len(blocks), each)
    )


# -- depth


def _depth(rounds: int) -> Figures:
    found: Figures = {}
    for name, image in inputs.depth_images():
        payload = image.tobytes()
        coded = depth.encode(payload, *image.shape)
        assert depth.decode(coded) == payload
        png = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        seconds = _seconds(
            {
                "depth": partial(depth.encode, payload, *image.shape),
                "decode": partial(depth.decode, coded),
                "PNG level 1": partial(cv2.imencode, ".png", image, png),
                "zstd 1": partial(_ZSTD.compress, payload),
            },
            rounds,
        )
        figure = partial(_figure, len(payload), is_exact=True)
        found[name] = {
            "depth": figure(
                len(coded), seconds["depth"], decode_mb_s=round(len(payload) / seconds["decode"] / 1e6)
            ),
            "PNG level 1": figure(len(cv2.imencode(".png", image, png)[1]), seconds["PNG level 1"]),
            "zstd 1": figure(len(_ZSTD.compress(payload)), seconds["zstd 1"]),
        }
    return found


# -- audio


def _audio(rounds: int) -> Figures:
    found: Figures = {}
    pcm = audio.Pcm.of(SOUND)
    for name, sound in inputs.sounds():
        blocks = [
            sound[start : start + BLOCK_SAMPLES].tobytes() for start in range(0, len(sound), BLOCK_SAMPLES)
        ]
        packed = [audio.encode(block, pcm) for block in blocks]
        assert [audio.decode(each, pcm) for each in packed] == blocks
        seconds = _seconds(
            {
                "pcm": partial(_each, partial(audio.encode, pcm=pcm), blocks),
                "zstd 1": partial(_each, _ZSTD.compress, blocks),
            },
            rounds,
        )
        figure = partial(_figure, sound.nbytes, is_exact=True)
        found[name] = {
            "pcm": figure(_in_chunks(packed, 100), seconds["pcm"]),
            "zstd 1": figure(_in_chunks(blocks, 100), seconds["zstd 1"]),
            "flac": _flac(blocks, figure),
        }
    return found


def _flac(blocks: Sequence[bytes], figure: Callable[..., Figures]) -> Figures:
    (codec,) = flac.CODECS
    try:
        pack = codec.packer(SOUND, 5)
    except ConfigError as err:
        return {"skipped": str(err)}
    decoder = Decoder(packed_as(SOUND, Encoding.FLAC))
    begin = time.process_time()
    packed = [pack(block, BLOCK_SAMPLES) or b"" for block in blocks]
    taken_s = time.process_time() - begin
    assert [decoder.plain(each, BLOCK_SAMPLES) for each in packed] == blocks
    return figure(sum(map(len, packed)), taken_s, ms_per_block=round(1e3 * taken_s / len(blocks), 2))


# -- video


def _video(_rounds: int) -> Figures:
    found: Figures = {}
    for name, frames in inputs.clips():
        jpeg_bytes, jpeg_s = _jpeg(frames)
        raw_bytes = sum(frame.nbytes for frame in frames)
        found[name] = {
            "JPEG 85": _clip(frames, raw_bytes, jpeg_bytes, jpeg_s, jpeg_bytes),
            **{
                codec: _encoded(codec, frames, raw_bytes, jpeg_bytes)
                for codec in ("h264", "h265", "av1", "h264_lossless", "png")
            },
        }
    return found


def _jpeg(frames: Sequence[NDArray[np.uint8]]) -> tuple[int, float]:
    begin = time.process_time()
    sizes = [len(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]) for frame in frames]
    return sum(sizes), time.process_time() - begin


def _encoded(codec: str, frames: Sequence[NDArray[np.uint8]], raw_bytes: int, jpeg_bytes: int) -> Figures:
    shape = frames[0].shape
    info = StreamInfo(
        "cam",
        Modality.CAMERA,
        Encoding.BGR8,
        30.0,
        "cam",
        shape=shape,
        max_payload_bytes=2 * frames[0].nbytes,
    )
    row = CodecChoice(codec).load()
    try:
        pack = row.packer(info, row.level or 0)
    except ConfigError as err:
        return {"skipped": str(err)}
    payloads = [frame.tobytes() for frame in frames]
    begin = time.process_time()
    packed = [pack(payload, 1) or b"" for payload in payloads]
    taken_s = time.process_time() - begin
    decoder = Decoder(packed_as(info, row.encoding))
    begin = time.process_time()
    shown = [decoder.pixels(each) for each in packed]
    decode_s = time.process_time() - begin
    errors = [_error_db(one, other) for one, other in zip(shown, frames, strict=True)]
    if row.is_exact:
        assert min(errors) == float("inf")
    return _clip(
        frames,
        raw_bytes,
        sum(map(len, packed)),
        taken_s,
        jpeg_bytes,
        decode_fps=round(len(frames) / decode_s),
        is_exact=row.is_exact,
        **({} if row.is_exact else {"psnr_db": round(float(np.mean(errors)), 1)}),
    )


def _clip(
    frames: Sequence[NDArray[np.uint8]],
    raw_bytes: int,
    stored_bytes: int,
    taken_s: float,
    jpeg_bytes: int,
    **more: Any,
) -> Figures:
    return {
        "ratio": round(raw_bytes / stored_bytes, 2),
        "smaller_than_jpeg_85": round(jpeg_bytes / stored_bytes, 2),
        "encode_fps": round(len(frames) / taken_s),
        **more,
    }


def _error_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    mean_square = float(np.mean((one.astype(np.float32) - other) ** 2))
    return float("inf") if mean_square == 0 else 10 * np.log10(255**2 / mean_square)


# -- printing


def print_table(found: Figures) -> None:
    for group, by_input in found.items():
        for name, methods in by_input.items():
            print(f"\n{group}: {name}")
            for method, figures in methods.items():
                print(f"  {method:26}" + "  ".join(_shown(figures.items())))


def _shown(figures: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"{key} {value}" for key, value in figures]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    found = measure(options.only.split(","), options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
