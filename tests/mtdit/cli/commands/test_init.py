"""`mtdit init`: questions, answers, and a file that the other commands read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib
from command_line import assert_one_line, mtdit
from driven_arms import HEIGHT, WIDTH, Start, Words
from repository import ROOT
from servo_chain import Chain

from mtdit.cli.app import COMMANDS
from mtdit.cli.commands.init import Found, Settings, fill, look
from mtdit.cli.config_check import check_config
from mtdit.cli.config_file import read_config
from mtdit.cli.config_keys import keys_of, shared_texts
from mtdit.cli.config_text import config_text
from mtdit_robots.cameras.v4l2 import Device
from mtdit_robots.so101.ports import Port, PortReport, Servo

FOLLOWER, LEADER = "/dev/serial/by-id/usb-follower", "/dev/serial/by-id/usb-leader"
CAMERAS = tuple(Device(f"/dev/v4l/by-id/usb-{name}-index0", "", name) for name in ("HD", "Wide"))
IDS = {"ids": ("my_arm", "other"), "leader_ids": ("my_leader",)}


def arm(path: str, volts: float = 12.0) -> PortReport:
    servos = tuple(Servo(n, 1_000_000, 777, "3.10", volts) for n in range(1, 7))
    return PortReport(Port(path, path), servos)


BOTH = Found((arm(FOLLOWER), arm(LEADER, 5.0)), CAMERAS, **IDS)


def asked(settings: Settings, found: Found, *answers: str) -> list[str]:
    """The questions; all answers are used."""
    questions: list[str] = []
    left = list(answers)

    def ask(question: str) -> str:
        questions.append(question)
        return left.pop(0)

    fill(settings, found, ask)
    assert left == []
    return questions


def test_answers_become_the_file_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Which is in the repository, and names nobody's arm."""
    settings = Settings({"robot": "so101"})
    questions = asked(settings, BOTH, "1", "1", "1", "1", "top", "wrist", "outputs/policy.mtdit")
    assert [question.partition("?")[0] for question in questions] == [
        "the arm that the policy moves",
        "the leader arm",
        "the calibration",
        "the leader calibration",
        *["name of this camera in the policy, e.g. top"] * 2,
        "the bundle (NAME.mtdit)",
    ]
    told = capsys.readouterr().out
    assert f"1  {FOLLOWER}  6 servos, 12.0 V" in told
    assert f"2  {LEADER}  6 servos, 5.0 V" in told
    assert f"{CAMERAS[0].path}  HD" in told
    text = settings.text()
    assert text == (ROOT / "docs/example.mtdit.toml").read_text(), text


def test_an_answer_that_is_none_is_asked_for_again() -> None:
    settings = Settings()
    answers = ("3", "x", "2", "", "-", "a.b", "top", "top", "", "")
    asked(settings, BOTH, *answers)
    assert settings.values == {"port": LEADER}
    assert settings.cameras == {"top": {"source": CAMERAS[0].path}}


def test_the_only_arm_and_its_only_calibration_are_the_default() -> None:
    settings = Settings()
    found = Found((arm(FOLLOWER), PortReport(Port("/dev/ttyUSB0", "/dev/ttyUSB0"))), ids=("a",))
    questions = asked(settings, found, "", "", "-")
    assert f"1 to 1, ENTER for {FOLLOWER}, - to leave it out" in questions[0]
    assert settings.values == {"port": FOLLOWER, "calibration": "a"}


def test_what_was_given_is_not_asked() -> None:
    settings = Settings({"port": LEADER, "leader_port": FOLLOWER, "bundle": "b.mtdit"})
    assert len(asked(settings, BOTH, "7", "2", "cal.json", "", "")) == 5
    assert settings.values["calibration"] == "other"
    assert settings.values["leader_calibration"] == "cal.json"


@pytest.fixture
def dev(tmp_path: Path) -> Callable[..., Path]:
    """A folder like /dev with these chains."""

    def made(*chains: Chain) -> Path:
        (tmp_path / "dev/serial/by-id").mkdir(parents=True)
        for number, chain in enumerate(chains):
            (tmp_path / f"dev/serial/by-id/usb-{number}").symlink_to(chain.port)
        return tmp_path / "dev"

    return made


def test_without_questions_the_only_arm_is_taken(
    dev: Callable[..., Path], chain: Chain, tmp_path: Path, words: Words
) -> None:
    """And doctor watches the camera of the file."""
    camera = ("--camera", f"top=file:{words.film}", "--camera", f"top.width={WIDTH}")
    camera = (*camera, "--camera", f"top.height={HEIGHT}", "--camera", "top.rotation=180")
    place = ("--dev", dev(chain), "--bus-timeout", "2")
    done = mtdit("init", "--yes", *place, *camera, "--units", "degrees", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "next: mtdit doctor\n" in done.stdout
    assert tomllib.loads((tmp_path / "mtdit.toml").read_text()) == {
        "robot": "so101",
        "port": str(tmp_path / "dev/serial/by-id/usb-0"),
        "units": "degrees",
        "cameras": {
            "top": {
                "source": f"file:{words.film}",
                "width": WIDTH,
                "height": HEIGHT,
                "rotation": 180,
            }
        },
    }
    done = mtdit("doctor", "--cycles", "5", "--bus-timeout", "2", cwd=tmp_path)
    assert "mtdit.toml: robot, port, units, cameras" in done.stdout
    assert "camera top rate" in done.stdout


def test_two_arms_cannot_be_told_apart_without_a_question(
    dev: Callable[..., Path], chain: Chain, leader: Chain, tmp_path: Path
) -> None:
    found = look(dev(chain, leader), 2.0, has_cameras=True)
    assert [len(one.servos) for one in found.ports] == [6, 6]
    with pytest.raises(Exception, match="2 arms are plugged in: add --port and --leader-port"):
        fill(Settings(), found, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "mtdit.toml exists: add --overwrite to replace it"),
        (("--out", "other.toml"), "no terminal to ask in: add --yes"),
        (("--out", "other.toml", "--camera", "top"), "is not NAME=VALUE"),
    ],
)
def test_refusals(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    (tmp_path / "mtdit.toml").write_text("not = [toml")
    assert_one_line(mtdit("init", *words, cwd=tmp_path), says)
    assert [file.name for file in tmp_path.iterdir()] == ["mtdit.toml"]


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mtdit.toml").write_text("not = [toml")
    done = mtdit("init", "--robot", "twin", "--yes", "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "mtdit.toml").read_text()) == {"robot": "twin"}


def test_a_person_answers(
    terminal: Start, dev: Callable[..., Path], chain: Chain, tmp_path: Path
) -> None:
    place = ("--dev", str(dev(chain)), "--bus-timeout", "2", "--out", str(tmp_path / "my.toml"))
    screen = terminal("-m", "mtdit.cli", "init", *place)
    screen.expect("6 servos")
    screen.send("\n")
    screen.expect("the calibration?")
    screen.send("my_arm\n")
    screen.expect("the bundle")
    screen.send("\n")
    assert screen.exit_code() == 0, screen.screen
    assert f"next: mtdit doctor --config {tmp_path / 'my.toml'}" in screen.screen
    assert tomllib.loads((tmp_path / "my.toml").read_text())["calibration"] == "my_arm"


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 'a "quoted" \\ back\tslash'},
        {"port": "line\nbreak \x7f é 🤖"},
        {"seed": 3, "max_speed": 1.5, "task": ["a", "b"]},
    ],
)
def test_what_is_written_is_read_back(settings: dict[str, Any]) -> None:
    cameras = {name: {"source": "0", "fps": 3.5} for name in ("top", "my cam", "été")}
    text = config_text(settings, cameras)
    assert tomllib.loads(text) == {**settings, "cameras": cameras}


def test_the_file_explains_every_key_of_the_top() -> None:
    shared = {
        key.name for one in COMMANDS.values() for key in keys_of(one).values() if key.is_shared
    }
    assert shared == set(shared_texts())
    check_config(read_config(ROOT / "docs/example.mtdit.toml"), COMMANDS)
