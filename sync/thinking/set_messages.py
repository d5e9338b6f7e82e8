"""Aligned sets as messages between the thinker and whoever asks for them."""

from typing import Any

import msgpack
import numpy as np
from pydantic import TypeAdapter

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.thinking.sets import AlignedSet, KeptFrame

Reply = dict[str, Any]
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)


def pack_set(aligned: AlignedSet) -> bytes:
    """Return an aligned set as one msgpack document."""
    packed: bytes = msgpack.packb(
        {
            "episode": aligned.episode_id,
            "started_ns": aligned.started_ns,
            "tick_ns": aligned.tick_ns,
            "members": [_packed(kept) for kept in aligned.members],
            "beside": [_packed(kept) for kept in aligned.beside],
            "burst": [_packed(kept) for kept in aligned.burst],
        }
    )
    return packed


def unpack_set(data: bytes) -> AlignedSet | str:
    """Return the aligned set in a reply to a request, or why there is none."""
    found: Reply = msgpack.unpackb(data)
    if "error" in found:
        return str(found["error"])
    members, beside, burst = (tuple(map(_unpacked, found[key])) for key in ("members", "beside", "burst"))
    return AlignedSet(found["episode"], found["started_ns"], found["tick_ns"], members, beside, burst)


def _packed(kept: KeptFrame) -> Reply:
    return {
        "info": _INFO.dump_json(kept.info),
        "seq": kept.frame.seq,
        "count": kept.frame.count,
        "capture_ns": kept.capture_ns.astype("<i8").tobytes(),
        "payload": bytes(kept.frame.payload),
    }


def _unpacked(found: Reply) -> KeptFrame:
    info = _INFO.validate_json(found["info"])
    capture_ns = np.frombuffer(found["capture_ns"], "<i8")
    frame = Frame(info.name, found["seq"], found["count"], None, capture_ns[-1:], found["payload"])
    return KeptFrame(info, frame, capture_ns)
