"""`mtdit run` as a systemd unit: what systemd itself takes, and what never moves an arm unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.service import NAME, install, uninstall, unit_path, unit_text, verify

SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this computer"
)
WORDS = ["/bin/sh", "-m", "mtdit", "run", "--task", 'open 100 % of "the" $drawer; \\now']


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer whose only programs of systemd are this one; it notes its words and says yes."""
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nexit 0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_nothing_starts_it_but_a_person() -> None:
    text = lines(unit_text(WORDS, Path("/home/a user")))
    assert "Restart=no" in text
    assert "[Install]" not in text, "systemctl enable has nothing to do"
    assert not [line for line in text if line.startswith(("WantedBy", "After", "Wants", "Also"))]
    assert "KillSignal=SIGINT" in text


def test_words_are_written_as_systemd_reads_them() -> None:
    text = lines(unit_text(WORDS, Path("/home/a user/100 %")))
    said = '"/bin/sh" "-m" "mtdit" "run" "--task" "open 100 %% of \\"the\\" $$drawer; \\\\now"'
    assert f"ExecStart={said}" in text
    assert "WorkingDirectory=/home/a user/100 %%" in text
    with pytest.raises(UserError, match="no control characters"):
        unit_text(["run", "--task", "open\nRestart=always"], Path("/"))


@SYSTEMD
@pytest.mark.parametrize("folder", ["/tmp", "/tmp/a user/100 %"])
def test_systemd_takes_it(tmp_path: Path, folder: str) -> None:
    (tmp_path / NAME).write_text(unit_text(WORDS, Path(folder)))
    assert verify(tmp_path / NAME) == ""


@SYSTEMD
@pytest.mark.parametrize(
    ("right", "wrong"), [("Restart=no", "Restart=nope"), ('"/bin/sh"', '"/bin/no-such-shell"')]
)
def test_what_systemd_would_ignore_is_a_problem(tmp_path: Path, right: str, wrong: str) -> None:
    text = unit_text(WORDS, Path("/tmp"))
    (tmp_path / NAME).write_text(text.replace(right, wrong))
    assert wrong.rpartition("=")[2].strip('"') in verify(tmp_path / NAME)


@SYSTEMD
def test_a_unit_that_systemd_refuses_replaces_none() -> None:
    said: list[str] = []
    install(unit_text(WORDS, Path("/tmp")), said.append)
    before = unit_path().read_text()
    with pytest.raises(UserError, match="nothing was installed"):
        install(unit_text(["/no/such/python"], Path("/tmp")), said.append)
    assert unit_path().read_text() == before
    assert list(unit_path().parent.iterdir()) == [unit_path()]


@pytest.mark.usefixtures("systemctl")
def test_installed_twice_and_removed(home: Path) -> None:
    said: list[str] = []
    for words in (WORDS, [*WORDS, "--seed", "1"]):
        assert install(unit_text(words, home), said.append).read_text() == unit_text(words, home)
    assert (home / "calls").read_text() == "--user daemon-reload\n" * 2
    assert said == []


def test_it_is_not_removed_while_it_drives_the_arm(systemctl: Path, home: Path) -> None:
    with pytest.raises(UserError, match="nothing to remove"):
        uninstall(print)
    install(unit_text(WORDS, home), print)
    with pytest.raises(UserError, match=f"systemctl --user stop {NAME}"):
        uninstall(print)
    systemctl.write_text("#!/bin/sh\nexit 3\n")  # not active, and no session of systemd
    said: list[str] = []
    assert not uninstall(said.append).exists()
    assert "systemctl --user daemon-reload" in said[0]


def test_a_computer_without_systemd(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(UserError, match="no systemd"):
        install(unit_text(WORDS, home), print)
    assert not unit_path().exists()
