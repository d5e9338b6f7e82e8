"""The signed consent state beside an episode in the store."""

from dataclasses import replace
from pathlib import Path

import pytest
from sessions import sensorium

from sensorium.errors import ConsentError
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.state import ConsentState, StreamState, pack_state, read_state
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key, trusted_keys
from sensorium.timebase import HostClock

NOW = 1_790_000_000_000_000_000
STATE = ConsentState(
    "01J00000000000000000000000",
    "01J00000000000000000000009",
    3,
    NOW,
    {
        "cam": StreamState(
            ("upload", "ai:train"), NOW + 100, ("01J00000000000000000000001",), "not for export"
        )
    },
)


def test_a_state_survives_its_way_and_permits_what_it_says_until_it_says() -> None:
    data = pack_state(STATE, signing_key(Role.OPERATOR))
    state = read_state(data, STATE.episode_id, trusted_keys(Role.OPERATOR))
    assert state == STATE
    assert state.permits("cam", Purpose.AI_TRAIN, NOW + 99).is_allowed
    assert not state.permits("cam", Purpose.AI_TRAIN, NOW + 100).is_allowed
    assert state.permits("cam", Purpose.EXPORT, NOW).reason == "not for export"
    assert not state.permits("mic", Purpose.AI_TRAIN, NOW).is_allowed


def test_a_state_of_a_stranger_or_of_another_episode_is_not_believed() -> None:
    by_device = pack_state(STATE, signing_key(Role.DEVICE))
    with pytest.raises(ConsentError, match="cannot be relied on"):
        read_state(by_device, STATE.episode_id, trusted_keys(Role.OPERATOR))
    data = pack_state(STATE, signing_key(Role.OPERATOR))
    with pytest.raises(ConsentError, match="of episode"):
        read_state(data, "01J00000000000000000000002", trusted_keys(Role.OPERATOR))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    with pytest.raises(ConsentError):
        read_state(bytes(flipped), STATE.episode_id, trusted_keys(Role.OPERATOR))


def test_the_uploader_leaves_it_beside_the_episode(tmp_path: Path) -> None:
    assert sensorium("demo", "--seconds", "2", "--out", tmp_path, "--json", timeout_s=120).code == 0
    (episode,) = (tmp_path / "central" / "episodes").iterdir()
    state = read_state((episode / "consent.json").read_bytes(), episode.name, trusted_keys(Role.OPERATOR))
    now_ns = HostClock().utc_ns()
    assert state.permits("camera_left", Purpose.AI_TRAIN, now_ns).is_allowed
    assert not state.permits("camera_left", Purpose.SHARE_THIRD_PARTY, now_ns).is_allowed
    assert replace(state, streams={}).permits("camera_left", Purpose.AI_TRAIN, now_ns).rule == "no_state"
