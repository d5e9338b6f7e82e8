"""The packaging trick holds: top-level folders, one import name, everything in the wheel."""

import ast
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("agent", "calibration", "drivers", "simulators", "sync", "uploader")
START_UP_S = 0.3
SLOW_MODULES = ("numpy", "cv2", "zmq", "google.protobuf", "cryptography", "sounddevice")

OPTIONAL_MODULES = (
    "dpkt",
    "hypothesis",
    "matplotlib",
    "mcap_protobuf",
    "pyarrow",
    "pytest",
    "rosbags",
    "scipy",
    "sounddevice",
)


def python(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def modules_in_tree() -> set[str]:
    """Return every module as a path inside the wheel."""
    found = {
        f"sensorium/{path.relative_to(REPOSITORY)}"
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*.py")
    }
    return found | {f"sensorium/{path.name}" for path in (REPOSITORY / "src/sensorium").glob("*.py")}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy without build leftovers, with what is committed and what is about to be."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("src", *ROOMS):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    done = python("-m", "build", "--wheel", "--outdir", str(folder), str(source), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("room", ROOMS)
def test_the_link_that_editors_follow_leads_to_its_room(room: str) -> None:
    link = REPOSITORY / "src" / "sensorium" / room
    if not link.is_symlink():
        assert link.read_text().strip() == f"../../{room}"  # a checkout without symbolic links
        return
    assert not link.readlink().is_absolute()
    assert link.resolve() == REPOSITORY / room


def test_a_wheel_holds_every_module_and_nothing_else_that_is_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if name.endswith(".py")} == modules_in_tree()
    assert "sensorium/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import sensorium.drivers.registry as registry; print(registry.__file__)"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "sensorium" / "drivers" / "registry.py"), done.stderr


def test_every_sub_package_is_listed_for_the_wheel() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    listed = dict(re.findall(r'^"(sensorium\.[a-z_.]+)" = "([a-z_/]+)"$', text, re.MULTILINE))
    packages = re.search(r"^packages = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert packages is not None
    in_tree = {
        "sensorium." + str(path.parent.relative_to(REPOSITORY)).replace("/", ".")
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("__init__.py")
    }
    assert set(listed) == in_tree
    assert set(re.findall(r'"([a-z_.]+)"', packages[1])) == in_tree | {"sensorium"}
    assert all(name == "sensorium." + folder.replace("/", ".") for name, folder in listed.items())


def test_every_folder_with_modules_is_a_package() -> None:
    bare = {
        path.parent
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert not bare


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_cannot_be_imported_under_a_second_name(room: str, tmp_path: Path) -> None:
    # -E: with tests/ on PYTHONPATH its folders, which mirror the rooms, would be found by these names.
    done = python("-E", "-c", f"import {room}", cwd=tmp_path)
    assert done.returncode == 1
    assert f"No module named '{room}'" in done.stderr


def test_every_module_imports_with_the_core_dependencies_alone(tmp_path: Path) -> None:
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sorted(modules_in_tree())
        if not name.endswith("__main__.py")
    ]
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL_MODULES!r}))\n"
        f"for name in {names!r}: importlib.import_module(name)"
    )
    done = python("-W", "error", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_no_module_imports_relatively_or_by_a_bare_room_name() -> None:
    for path in (path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} imports relatively"
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert name.split(".")[0] not in ROOMS, f"{path}:{node.lineno} imports {name}"


def test_the_command_line_starts_without_the_slow_modules(tmp_path: Path) -> None:
    script = (
        f"import sys, sensorium.agent.cli; print(*[name for name in {SLOW_MODULES!r} if name in sys.modules])"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help_appears_at_once(tmp_path: Path) -> None:
    """In seconds of the processor, which is what an idle machine takes; this one may be busy with other tests."""
    best_s = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("-c", "from sensorium.agent.cli import main; main()", "--help", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best_s = min(best_s, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert best_s < START_UP_S
