"""Drivers are found by name, also those of other people's packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract.cases import install_third_party, third_party

from sensorium.drivers.driver import Driver
from sensorium.drivers.registry import BUILT_IN, driver_targets, load_driver
from sensorium.errors import ConfigError


def test_a_misspelt_driver_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'opencv'"):
        load_driver("opencvv")


def test_a_driver_that_resembles_nothing_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"known: ati_netft, .*xsens"):
        load_driver("?")


def test_a_third_party_package_adds_a_driver(tmp_path: Path) -> None:
    assert "example_ticker" not in driver_targets()
    with third_party(tmp_path):
        driver_type = load_driver("example_ticker")
        assert issubclass(driver_type, Driver)
        assert driver_type.__module__ == "example_ticker"
    assert "example_ticker" not in driver_targets()


def test_a_fresh_process_finds_the_third_party_driver(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_third_party(site)
    script = (
        "from sensorium.drivers.registry import load_driver; print(load_driver('example_ticker').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "Ticker"


def write_entry_point(site: Path, name: str, target: str) -> None:
    metadata = site / "intruder-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: intruder\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[sensorium.drivers]\n{name} = {target}\n")


def test_a_third_party_package_cannot_replace_a_built_in_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_entry_point(tmp_path, "opencv", "os:PathLike")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert driver_targets()["opencv"] == BUILT_IN["opencv"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent_module:Driver", "cannot be loaded: No module named 'absent_module'"),
        ("os:Absent", "cannot be loaded: .*Absent"),
        ("os:PathLike", "is not a sensorium Driver class"),
    ],
)
def test_a_broken_third_party_driver_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    write_entry_point(tmp_path, "broken", target)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        load_driver("broken")
