"""A deployment through the system's own ssh and rsync, to an sshd on the loopback address."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from other_computers import CALLED, MTDIT, OtherComputers, calls, program
from repository import DEMO, ROOT

from mtdit_runtime.deploy.deploy import Deployment, DeployOptions, deploy

SBIN = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
NEEDED = ("ssh", "ssh-keygen", "sshd", "rsync")
ABSENT = [name for name in NEEDED if shutil.which(name, path=SBIN) is None]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"not on this computer: {', '.join(ABSENT)}")
HOST = "robot"
PACKAGES = (ROOT, ROOT / "export", ROOT / "runtime", ROOT / "robots")
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Robot:
    """The computer behind sshd. home: its home folder. keys: the files of ssh and sshd."""

    home: Path
    keys: Path
    options: DeployOptions

    def deploy(self, *changed: str) -> Deployment:
        """changed: lines that go before those of ssh's configuration."""
        config = self.keys / "changed"
        config.write_text("\n".join([*changed, (self.keys / "config").read_text()]))
        (done,) = deploy([HOST], DEMO, replace(self.options, ssh=f"ssh -F {config}"))
        return done


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Robot]:
    path = os.environ["PATH"]
    others = OtherComputers(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", path)  # the real ssh and rsync
    home, keys = others.add(), tmp_path / "keys"
    (home / "programs/rsync").unlink()
    program(home / "programs/mtdit", f'{CALLED}exec {sys.executable} -m mtdit "$@"\n')
    with sshd(keys, home, path):
        options = replace(others.options, folder=str(home / "mtdit"), backend="onnx")
        yield Robot(home, keys, replace(options, ssh=f"ssh -F {keys / 'config'}"))


class sshd:  # noqa: N801
    """Within the block, an sshd whose sessions are at home in a folder."""

    def __init__(self, keys: Path, home: Path, path: str) -> None:
        keys.mkdir()
        for name in ("host", "me"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
            subprocess.run(words, check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        there = {
            "HOME": str(home),
            "CALLS": str(home / "calls"),
            "MTDIT_ROOT": str(home / "root"),
            "PATH": f"{home / 'programs'}:{path}",
            "PYTHONPATH": os.pathsep.join(map(str, PACKAGES)),
            "FAIL": "",
        }
        (keys / "sshd_config").write_text(
            f"Port {self._port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile none\n"
            f"AuthorizedKeysFile {keys}/me.pub\nStrictModes no\nUsePAM no\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in there.items())}\n"
        )
        (keys / "config").write_text(
            f"Host {HOST}\nHostName 127.0.0.1\nPort {self._port}\nUser {getpass.getuser()}\n"
            f"IdentityFile {keys}/me\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {keys}/known\nGlobalKnownHostsFile none\n"
        )
        key = (keys / "host.pub").read_text()
        (keys / "known").write_text(f"[127.0.0.1]:{self._port} {key}")
        self._keys = keys

    def __enter__(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of Debian puts itself
        words = [str(shutil.which("sshd", path=SBIN)), "-D", "-f", str(self._keys / "sshd_config")]
        self._log = (self._keys / "log").open("w")
        self._sshd = subprocess.Popen([*words, "-e"], stderr=self._log)
        test = ["ssh", "-F", str(self._keys / "config"), "-o", "BatchMode=yes", HOST, "true"]
        until = time.monotonic() + PATIENCE_S
        while subprocess.run(test, capture_output=True).returncode:
            if "refused" in (log := (self._keys / "log").read_text()) or time.monotonic() > until:
                self.__exit__()
                pytest.skip(f"sshd of this computer lets nobody in: {log[-300:]}")
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._sshd.terminate()
        self._sshd.wait()
        self._log.close()


def test_a_bundle_computes_on_another_computer(robot: Robot) -> None:
    """All real but Python's environment there."""
    done = robot.deploy()
    assert done.error == ""
    assert done.chunk_ms is not None
    assert done.chunk_ms > 0
    folder = robot.home / "mtdit"
    for file in (path for path in DEMO.rglob("*") if path.is_file()):
        assert (folder / "demo.mtdit" / file.relative_to(DEMO)).read_bytes() == file.read_bytes()
    assert (folder / "mtdit.toml").read_text() == robot.options.config
    assert {path.name for path in (folder / "docker").iterdir()} >= {"install.sh", "locks"}
    assert not list(folder.rglob(".~tmp~"))


def test_a_second_time_replaces_what_has_changed_and_nothing_else(robot: Robot) -> None:
    folder = robot.home / "mtdit"
    program(robot.home / "programs/mtdit", CALLED + MTDIT)
    assert robot.deploy().error == ""
    old, stray = folder / "demo.mtdit/denoiser.onnx", folder / "demo.mtdit/stray"
    engines, own = folder / "demo.mtdit/engines/there/a.plan", folder / "run.npz"
    engines.parent.mkdir(parents=True)
    for file in (stray, engines, own):
        file.write_text("")
    number = old.stat().st_ino
    (folder / "demo.mtdit/manifest.json").write_text("{}")
    (robot.home / "calls").write_text("")
    assert robot.deploy().error == ""
    assert old.stat().st_ino == number, "copied again"
    manifest = (folder / "demo.mtdit/manifest.json").read_text()
    assert manifest == (DEMO / "manifest.json").read_text()
    assert [file.exists() for file in (stray, engines, own)] == [False, True, True]
    assert not [call for call in calls(robot.home) if "-m venv" in call]


def test_an_interrupted_deployment_ends_there_too_and_goes_on(robot: Robot) -> None:
    """Else the next one would find a build that still runs."""
    number, mtdit = robot.home / "number", robot.home / "programs/mtdit"
    program(mtdit, f"{CALLED}echo $$ > {number}\necho busy\nsleep {PATIENCE_S:.0f}\n")

    def interrupt(host: str, line: str) -> None:
        if line == "busy":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # a shell starts programs in the background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            deploy([HOST], DEMO, robot.options, say=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    until = time.monotonic() + PATIENCE_S / 2
    while Path("/proc", number.read_text().strip()).exists():
        assert time.monotonic() < until, "it goes on there"
        time.sleep(0.02)
    program(robot.home / "mtdit/env/current/bin/mtdit", CALLED + MTDIT)
    assert robot.deploy().error == ""
    assert len([call for call in calls(robot.home) if "-m venv" in call]) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("PubkeyAuthentication no", "type ssh-copy-id robot"),
        ("UserKnownHostsFile /dev/null", "its key is not known here: type ssh -F"),
        ("Port 1", "it takes no ssh"),
        ("HostName no-such-computer.invalid", "no computer has this name"),
    ],
)
def test_ssh_that_does_not_get_in(robot: Robot, changed: str, says: str) -> None:
    error = robot.deploy(changed).error
    assert error.startswith(f"{HOST}: ")
    assert says in error


def test_a_key_that_has_changed(robot: Robot) -> None:
    known, key = robot.keys / "known", (robot.keys / "me.pub").read_text()
    known.write_text(f"{known.read_text().split()[0]} {key}")
    assert "type ssh-keygen -R" in robot.deploy().error
