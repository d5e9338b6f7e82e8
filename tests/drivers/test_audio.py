import builtins
import contextlib
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensorium.drivers.frame import PCM_BYTES, Encoding, Modality, StreamInfo
from sensorium.drivers.payloads import audio, flac
from sensorium.drivers.payloads.audio import Pcm, decode, encode, encode_pcm
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.envelope import AS_IT_CAME
from sensorium.drivers.stages import CodecStage, Pipeline
from sensorium.errors import ConfigError, PayloadError

SOUND = StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48_000.0, "mic", shape=(2,))


def _sound(count: int, channels: int = 2) -> NDArray[np.float64]:
    """Return (count, channels) of a chord with noise below it, in full scales."""
    rng = np.random.default_rng(1)
    time_s = np.arange(count)[:, None] / 48_000
    chord = sum(np.sin(2 * np.pi * 220 * k * time_s + np.arange(channels)) / k for k in range(1, 6))
    return np.asarray(0.1 * chord + 1e-3 * rng.standard_normal((count, channels)))


@settings(deadline=None, max_examples=300)
@given(
    item_bytes=st.sampled_from([2, 3, 4]),
    channels=st.integers(1, 8),
    count=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    quiet=st.booleans(),
)
def test_any_samples_come_back(item_bytes: int, channels: int, count: int, seed: int, quiet: bool) -> None:
    """Any bits, so any float too; and small values of either sign."""
    rng = np.random.default_rng(seed)
    payload = rng.bytes(count * channels * item_bytes)
    if quiet:
        values = np.cumsum(rng.integers(-3, 4, (count, channels)), axis=0)
        payload = values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :item_bytes].tobytes()
    pcm = Pcm(channels, item_bytes)
    coded = encode(payload, pcm)
    assert decode(coded, pcm) == payload
    assert len(coded) == len(payload) + 1 + channels


@pytest.mark.parametrize("encoding", PCM_BYTES)
def test_plain_samples_of_every_width_are_read_in_full_scales(encoding: str) -> None:
    info = replace(SOUND, encoding=encoding)
    values = _sound(100)
    payload = encode_pcm(info, values)
    assert len(payload) == 200 * PCM_BYTES[encoding]
    found = Decoder(info).samples(payload, 100)
    assert found is not None
    step = 2.0 ** -(8 * PCM_BYTES[encoding] - 1) if encoding != Encoding.PCM_F32LE else 2.0**-24
    assert np.abs(found - values).max() <= step / 2
    if encoding != Encoding.PCM_F32LE:
        loud = Decoder(info).samples(encode_pcm(info, np.array([[2.0, -2.0]])), 1)
        np.testing.assert_array_equal(loud, [[1 - step, -1.0]])


def test_blocks_of_ten_milliseconds_are_stored_much_smaller_than_as_they_came() -> None:
    payloads = [encode_pcm(SOUND, block) for block in np.split(_sound(48_000), 100)]
    packed = [encode(payload, Pcm.of(SOUND)) for payload in payloads]
    plain_bytes, packed_bytes = (
        len(zstandard.ZstdCompressor(level=1).compress(b"".join(blocks))) for blocks in (payloads, packed)
    )
    assert plain_bytes > 1.4 * packed_bytes


def test_what_is_no_whole_sample_is_kept_as_it_came_and_says_so() -> None:
    for payload in (b"", b"odd"):
        coded = encode(payload, Pcm(2, 2))
        assert coded[0] == AS_IT_CAME
        assert decode(coded, Pcm(2, 2)) == payload


@settings(deadline=None, max_examples=100)
@given(damaged=st.binary(max_size=60))
def test_damage_is_refused_or_decodes_to_some_samples(damaged: bytes) -> None:
    for payload in (damaged, bytes([audio.VERSION]) + damaged):
        with contextlib.suppress(PayloadError):
            assert isinstance(decode(payload, Pcm(2, 3)), bytes)


# -- FLAC


def _flac(info: StreamInfo) -> tuple[Any, Decoder]:
    pipeline = Pipeline([CodecStage(CodecChoice("flac"), {}, must_fit=True)], [info])
    return CodecChoice("flac").load().packer(info, 5), Decoder(pipeline.infos[0])


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_flac_gives_back_16_bit_samples_and_is_smaller(channels: int) -> None:
    pytest.importorskip("av")
    info = replace(SOUND, shape=(channels,))
    pack, decoder = _flac(info)
    rng = np.random.default_rng(2)
    for count in (1, 17, 480, 10_000):
        for payload in (encode_pcm(info, _sound(count, channels)), rng.bytes(2 * count * channels)):
            coded = pack(payload, count)
            assert decoder.plain(coded, count) == payload
            assert len(coded) <= len(payload) + 1
    music = encode_pcm(info, _sound(4800, channels))
    assert len(pack(music, 4800)) < 0.8 * len(music)


def test_a_flac_payload_is_a_flac_file_behind_its_version() -> None:
    pytest.importorskip("av")
    pack, _ = _flac(SOUND)
    assert pack(encode_pcm(SOUND, _sound(480)), 480)[:5] == bytes([flac.VERSION]) + b"fLaC"


@pytest.mark.parametrize("encoding", [Encoding.PCM_S24LE, Encoding.PCM_S32LE, Encoding.PCM_F32LE])
def test_flac_refuses_wider_samples_because_it_would_lose_their_low_byte(encoding: str) -> None:
    with pytest.raises(ConfigError, match=r"16-bit samples only, it would drop the low byte.*codec: pcm"):
        _flac(replace(SOUND, encoding=encoding))


def test_flac_refuses_more_channels_than_it_holds() -> None:
    with pytest.raises(ConfigError, match=r"up to 8 channels.*not 9 at 48000 Hz"):
        _flac(replace(SOUND, shape=(9,)))


def test_a_damaged_flac_payload_is_refused() -> None:
    pytest.importorskip("av")
    pack, decoder = _flac(SOUND)
    coded = pack(encode_pcm(SOUND, _sound(480)), 480)
    for damaged in (coded[:30], coded[:5] + bytes(100), b"", bytes([99]) + coded[1:]):
        with pytest.raises(PayloadError):
            decoder.plain(damaged, 480)


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without_av(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError("No module named 'av'")
        return plain_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "av", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(ConfigError, match=r"codec flac needs PyAV.*pip install 'sensorium\[video\]'"):
        CodecChoice("flac").load().packer(SOUND, 5)
