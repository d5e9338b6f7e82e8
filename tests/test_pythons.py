"""The ranges in pyproject.toml: every Python that it names, the oldest of each package, and wheels for arm64."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml with Python 3.11's tomllib")

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
USED_WITH_EXTRAS = ("tests/drivers/test_video.py", "tests/sync/test_source_bags.py", "tests/sync/test_xdf.py")

pytestmark = pytest.mark.slow


def project() -> dict[str, list[str]]:
    """Return the requirements by extra; "" holds those that every user gets."""
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return {"": told["dependencies"], **told["optional-dependencies"]}


def lowest(requirements: list[str]) -> list[str]:
    """Return the oldest version that each requirement allows, pinned."""
    found = [re.match(r"([\w-]+)>=([\w.]+)", each) for each in requirements]
    return [f"{match[1]}=={match[2]}" for match in found if match]


def interpreter(version: str) -> str:
    """Return the path of a Python of this version, or skip."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    path = str(kept[-1]) if kept else shutil.which(f"python{version}")  # pyenv's shims may refuse to choose
    if path is None:
        pytest.skip(f"no Python {version} is on this machine")
    return path


def run(*command: object, cwd: Path = REPOSITORY, home: Path | None = None) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    if home is not None:
        environment["SENSORIUM_HOME"] = str(home)
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def environment_of(version: str, folder: Path, *requirements: str) -> Path:
    """Return the bin folder of a new environment with these packages and the product."""
    run(interpreter(version), "-m", "venv", folder / "venv")
    bins = folder / "venv" / "bin"
    run(bins / "python", "-m", "pip", "install", "--quiet", ".", *requirements)
    return bins


def check_demo(bins: Path, folder: Path) -> None:
    said = run(
        bins / "sensorium", "demo", "--seconds", 4, "--out", folder / "demo", cwd=folder, home=folder / "home"
    )
    assert "the pipeline is right: every sample is recorded or accounted for" in said


@pytest.mark.parametrize("version", PYTHONS)
def test_a_plain_install_runs_the_demo(version: str, tmp_path: Path) -> None:
    check_demo(environment_of(version, tmp_path), tmp_path)


def test_the_oldest_packages_that_are_allowed_run_the_demo(tmp_path: Path) -> None:
    check_demo(environment_of("3.10", tmp_path, *lowest(project()[""])), tmp_path)


def test_the_oldest_packages_of_the_extras_do_what_they_are_for(tmp_path: Path) -> None:
    extras = [
        each for extra in ("audio", "ros", "video", "catalog", "xdf") for each in lowest(project()[extra])
    ]
    bins = environment_of("3.10", tmp_path, *extras, "pytest", "hypothesis", "dpkt")
    run(
        bins / "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *USED_WITH_EXTRAS,
        home=tmp_path / "home",
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("version", PYTHONS)
def test_every_package_has_a_wheel(version: str, machine: str, tmp_path: Path) -> None:
    """With what they need in turn; nothing is installed."""
    wanted = [each for extra, listed in project().items() if extra not in ("all", "dev") for each in listed]
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux2014", "manylinux_2_28")]
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--only-binary=:all:", f"--python-version={version}", *platforms, f"--target={tmp_path}", *wanted),
    )
