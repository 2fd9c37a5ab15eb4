"""What is missing on a computer, and what to type for it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from docker_files import DOCKER
from other_computers import JETPACK_7

from mtdit_runtime.deploy.other_side import NEEDED_MB, Facts, Wanted, facts, problems, questions

WANTED = Wanted("mtdit", 2000, ("/dev/ttyACM0",), True, False, "ssh -p 22 me@jetson")
HAS = frozenset(["rsync", "python3-venv", "python3-libnvinfer"])
FACTS = Facts("me", ("dialout", "video"), HAS, JETPACK_7, 9000, (), ())
SUDO = "type ssh -t -p 22 me@jetson sudo"


def test_nothing_is_missing() -> None:
    assert list(problems(FACTS, WANTED)) == []
    assert FACTS.target == "jp7"


@pytest.mark.parametrize(
    ("here", "wanted", "says"),
    [
        ({"release": "# R35 (release), REVISION: 4.1"}, {}, "flash JetPack 6.1"),
        ({"release": "# R36 (release), REVISION: 4.7"}, {}, "dist-upgrade"),
        ({"release": "# R41 (release), REVISION: 1.0"}, {}, "no profile for L4T R41"),
        ({"release": "# a board of another kind"}, {}, "unknown release"),
        ({"release": ""}, {}, "add --backend onnx"),
        ({"has": HAS - {"rsync"}}, {}, f"{SUDO} apt-get install -y rsync"),
        ({"has": HAS - {"python3-venv"}}, {}, f"{SUDO} apt-get install -y python3-venv"),
        ({"has": HAS - {"python3-libnvinfer"}}, {}, "or add --backend onnx"),
        ({"groups": ("video",)}, {}, f"me is not in dialout: {SUDO} usermod -aG dialout me"),
        ({"groups": ()}, {}, "usermod -aG dialout,video me"),
        ({}, {"image": True}, "usermod -aG docker me"),
        ({"free_mb": 1999}, {}, "1999 MB free and 2000 are needed"),
        ({"missing": ("/dev/ttyACM0",)}, {}, "no /dev/ttyACM0 there: plug it in"),
        ({"missing": ("/dev/a",), "ports": ("/dev/ttyACM1",)}, {}, "ports there: /dev/ttyACM1"),
    ],
)
def test_one_thing_is_missing(
    here: dict[str, object], wanted: dict[str, object], says: str
) -> None:
    found = [*problems(replace(FACTS, **here), replace(WANTED, **wanted))]
    assert any(says in problem for problem in found), found
    assert all(": " in problem and "\n" not in problem for problem in found)


def test_what_is_not_needed_is_not_asked_for() -> None:
    onnx, image = replace(WANTED, tensorrt=False), replace(WANTED, image=True)
    assert list(problems(replace(FACTS, has=HAS - {"python3-libnvinfer"}), onnx)) == []
    assert (
        list(problems(replace(FACTS, has=frozenset(["rsync", "docker", "compose"])), image)) == []
    )
    root = replace(FACTS, groups=(), has=HAS | {"every-group"})
    assert list(problems(root, WANTED)) == []


def test_this_computer_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions are bash; a login may print something before."""
    for name in ("etc/nv_tegra_release", "dev/ttyACM1", "dev/serial/by-id/usb-arm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(JETPACK_7)
    monkeypatch.setenv("MTDIT_ROOT", str(tmp_path))
    wanted = replace(WANTED, folder="no/such/folder", devices=("/dev/ttyACM1", "/dev/it's"))
    done = subprocess.run(
        ["bash", "-c", questions(wanted)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    here = facts(["Welcome", *done.stdout.splitlines()])
    assert (here.release, here.target) == (JETPACK_7.strip(), "jp7")
    assert here.user
    assert here.groups
    assert here.free_mb > 0
    assert here.missing == ["/dev/it's"]
    assert here.ports == ["/dev/serial/by-id/usb-arm", "/dev/ttyACM1"]
    nothing = subprocess.run(
        ["bash", "-c", questions(replace(wanted, devices=()))], capture_output=True, text=True
    )
    assert facts(nothing.stdout.splitlines()).missing == []


def test_as_much_disk_is_asked_for_as_the_scripts_need() -> None:
    text = (DOCKER / "lib.sh").read_text()
    assert text.count(f"NEED_MB={NEEDED_MB} ") == 3
