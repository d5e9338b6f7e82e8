"""Stores on shares and disks that lack what POSIX promises: all is delivered, and what is not promised is said once.

The uploader is a process of its own; system calls below the share's folder answer as SMB, NFS, sshfs, 9p and FAT do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.manifest import read_manifest
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.proof import is_evictable
from sensorium.uploader.receipt import State, data_key, upload_state
from sensorium.uploader.stores.directory import DirectoryStore

_CASE = Path("/work/shared/cases/store_on_smb_share.py")

_SHIM = """
import errno, fcntl, os

_share, _answers = os.path.realpath(os.environ["SHARE"]), dict(
    each.split("=") for each in os.environ["ANSWERS"].split(",")
)


def _refuse(call, path):
    if call in _answers and os.path.realpath(path).startswith(_share):
        number = getattr(errno, _answers[call])
        raise OSError(number, os.strerror(number), os.fspath(path))


def _name(fd):
    return os.readlink(f"/proc/self/fd/{fd if isinstance(fd, int) else fd.fileno()}")


_link, _fsync, _flock, _replace, _advise = os.link, os.fsync, fcntl.flock, os.replace, os.posix_fadvise
_rename, _chmod = os.rename, os.chmod


def link(src, dst, **rest):
    _refuse("link", dst)
    return _link(src, dst, **rest)


def fsync(fd):
    _refuse("sync_folder" if os.path.isdir(_name(fd)) else "sync_file", _name(fd))
    return _fsync(fd)


def flock(fd, how):
    _refuse("flock", _name(fd))
    return _flock(fd, how)


def replace(src, dst, **rest):
    if os.path.exists(dst):
        _refuse("replace", dst)
    return _replace(src, dst, **rest)


def rename(src, dst, **rest):
    if os.path.exists(dst):
        _refuse("replace", dst)
    return _rename(src, dst, **rest)


def advise(fd, *rest):
    _refuse("advise", _name(fd))
    return _advise(fd, *rest)


def chmod(path, *rest, **more):
    _refuse("chmod", path)
    return _chmod(path, *rest, **more)


os.link, os.fsync, fcntl.flock, os.replace, os.posix_fadvise = link, fsync, flock, replace, advise
os.rename, os.chmod = rename, chmod
"""

SHARES = {
    "SMB": "link=EINVAL,sync_folder=EINVAL",
    "NFS without locks": "flock=ENOLCK",
    "sshfs": "link=EPERM,sync_folder=ENOSYS,flock=ENOSYS,replace=EPERM,chmod=EPERM",
    "9p of a virtual machine": "link=EOPNOTSUPP,sync_folder=EINVAL,flock=EINVAL,sync_file=EINVAL,advise=EINVAL",
    "FAT": "link=EPERM,chmod=EPERM",
    "a share of a NAS": "link=EACCES,sync_folder=EBADF,replace=EEXIST",
}
EACH_RUN = {"sshfs", "9p of a virtual machine"}


class Bench:
    """A spool with an episode, and an uploader in a process of its own whose store is on the share."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.trusted = begin_spool(folder / "spool")
        now_ns = HostClock().utc_ns()
        grant = grant_for(captured=(CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS), valid_around_ns=now_ns)
        ConsentStore(self.spool.root / "consent", HostClock()).grant(grant)
        self.episode = seal_episode(self.spool)
        self.share = folder / "share"
        self.share.mkdir()
        self.store = DirectoryStore(self.share / "central")
        self.shim = folder / "shim"
        self.shim.mkdir()

    def upload(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        places = f"{self.shim}:{os.environ.get('PYTHONPATH', '')}"
        arguments = ["upload", "--spool", str(self.spool.root), "--store", self.store.url]
        return subprocess.run(
            [sys.executable, "-m", "sensorium.agent.cli", *arguments, "--once", "--json", *words],
            env={**os.environ, **environment, "PYTHONPATH": places, "SHARE": str(self.share)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def assert_delivered(self, done: subprocess.CompletedProcess[str]) -> list[str]:
        """Return what was said of the share."""
        assert done.returncode == 0, done.stdout + done.stderr
        assert upload_state(self.episode) is State.VERIFIED
        assert is_evictable(self.episode, self.store, self.trusted)
        assert [path.name for path in (self.store.root / ".partial").iterdir() if path.name != "lock"] == []
        remarks: list[str] = json.loads(done.stdout)["verification"]["remarks"]
        return remarks


@pytest.mark.parametrize(
    "share", [pytest.param(name, marks=[] if name in EACH_RUN else pytest.mark.slow) for name in SHARES]
)
def test_an_episode_is_delivered_whatever_the_share_cannot_do(share: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.shim / "sitecustomize.py").write_text(_SHIM)
    # What lies there in other bytes is replaced: by a share that cannot, too.
    damaged = data_key(bench.episode.name, read_manifest(bench.episode, bench.trusted).files[0])
    bench.store.put(damaged, b"damaged")
    remarks = bench.assert_delivered(bench.upload(ANSWERS=SHARES[share]))
    expected = {
        "sync_folder": "folders cannot be synced",
        "sync_file": "files cannot be synced",
        "flock": "files cannot be locked",
        "replace": "renamed onto another",
    }
    answers = {each.split("=")[0] for each in SHARES[share].split(",")}
    said = {call for call, text in expected.items() if sum(text in remark for remark in remarks) == 1}
    assert said == expected.keys() & answers
    assert len(remarks) == len(said), "each is said once"
    assert all(bench.store.url in remark for remark in remarks)


@pytest.mark.skipif(not _CASE.is_file(), reason="the case's generator is not on this machine")
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"SYNC": "refused"}),
        pytest.param({"SYNC": "refused", "LINK": "works"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_case_of_an_smb_share_is_delivered(environment: dict[str, str], tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    case = tmp_path / "case"
    case.mkdir()
    subprocess.run([sys.executable, str(_CASE), str(case)], check=True, capture_output=True)
    (bench.shim / "sitecustomize.py").write_text((case / "sitecustomize.py").read_text())
    bench.assert_delivered(bench.upload(**environment))


def test_a_share_that_is_full_or_broken_is_no_share_that_lacks_something(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.shim / "sitecustomize.py").write_text(_SHIM)
    done = bench.upload(ANSWERS="link=ENOSPC")
    assert done.returncode == 3
    assert upload_state(bench.episode) is not State.VERIFIED
    assert "No space left" in done.stdout
