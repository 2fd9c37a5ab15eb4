"""The scripts of docker/ in a folder in place of `/`, with stand-ins for apt, Python and users that
write down how they were called.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from docker_files import DOCKER, DOCKERFILES, bases
from repository import ROOT

from mtdit_runtime.jetson import JETPACKS, PROFILES

Done = subprocess.CompletedProcess[str]

CALLED = '#!/bin/bash\necho "$(basename "$0") $*" >> "$CALLS"\n'
# makes an environment as `venv` does, and fails where $FAIL matches its words
PYTHON = """
if [ -n "$FAIL" ] && [[ "$*" == *"$FAIL"* ]]; then echo "no $FAIL here" >&2; exit 1; fi
if [ "$2" = venv ]; then
  mkdir -p "${@: -1}/bin" && touch "${@: -1}/pyvenv.cfg"
  cp "$0" "${@: -1}/bin/python" && cp "$0" "${@: -1}/bin/mtdit"
fi
"""


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


class Box:
    """A computer made of files."""

    def __init__(self, folder: Path) -> None:
        self.root, self.calls = folder / "root", folder / "calls"
        self.programs, self.wheel = folder / "programs", folder / "mtdit-0.1.0-py3-none-any.whl"
        self.root.mkdir()
        self.programs.mkdir()
        self.wheel.write_bytes(b"a wheel")
        for name in ("apt-get", "apt-cache", "curl", "usermod", "useradd", "userdel", "python3"):
            self.program(name, PYTHON if name == "python3" else "")
        self.program("dpkg-query", "exit 1")

    def program(self, name: str, body: str) -> None:
        (self.programs / name).write_text(CALLED + body)
        (self.programs / name).chmod(0o755)

    def file(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def __call__(self, script: str, *words: str, **more: str) -> Done:
        self.calls.write_text("")
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        kept = {"PATH": path, "ROOT": str(self.root), "CALLS": str(self.calls), "FAIL": ""}
        command = [DOCKER / script, *words]
        return subprocess.run(command, capture_output=True, text=True, env=kept | more)

    def install(self, *words: str, **more: str) -> Done:
        given = ("--target", "rtx", "--wheel", str(self.wheel), "--user", "root", *words)
        return self("install.sh", *given, **more)

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}

    def current(self) -> str:
        return os.readlink(self.root / "opt/mtdit/current")


def refused(done: Done, *parts: str) -> None:
    """Exit code 2 and one line that holds all parts."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("mtdit: ")
    for part in parts:
        assert part in line


# -- which target


@pytest.mark.parametrize("release", JETPACKS)
def test_scripts_and_doctor_know_the_same_jetpacks(box: Box, release: str) -> None:
    major, rest = release.split(".", 1)
    box.file("etc/nv_tegra_release", f"# R{major} (release), REVISION: {rest}, GCID: 1\n")
    done = box("install.sh", "--wheel", str(box.wheel), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"mtdit 0.1.0 for {PROFILES[int(major)]}" in done.stdout


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("# R35 (release), REVISION: 4.1", ("unknown JetPack (L4T R35)", "add --target jp7")),
        ("# R36 (release), REVISION: 3.0", ("JetPack 6.0", "flash JetPack 6.1")),
        ("nonsense", ("unknown JetPack (L4T R?)",)),
        (None, ("neither a Jetson nor an x86-64 computer", "--without-tensorrt")),
    ],
)
def test_a_computer_that_no_target_fits(box: Box, text: str | None, parts: tuple[str, ...]) -> None:
    if text is not None:
        box.file("etc/nv_tegra_release", text)
    before = box.files()
    refused(box("install.sh", "--wheel", str(box.wheel)), *parts)
    assert box.files() == before
    assert box.called == []


@pytest.mark.parametrize(("machine", "code"), [("x86_64", 0), ("aarch64", 2)])
def test_a_driver_means_rtx_on_x86_64_only(box: Box, machine: str, code: int) -> None:
    box.file("proc/driver/nvidia/version", "NVRM version")
    box.program("uname", f"echo {machine}")
    done = box("install.sh", "--wheel", str(box.wheel), "--dry-run")
    assert (done.returncode, "for rtx" in done.stdout) == (code, code == 0)


# -- install


def test_a_dry_run_says_everything_and_does_nothing(box: Box) -> None:
    done = box.install("--arm", "follower=5A46", "--dry-run")
    assert done.returncode == 0, done.stderr
    for part in ("apt-get install", "venv", "--require-hashes", "99-mtdit.rules", "mtdit/follower"):
        assert part in done.stdout
    assert done.stdout.splitlines()[-1].startswith("nothing was changed")
    assert box.files() == set()
    assert not [
        call for call in box.called if call.startswith(("apt-get", "usermod", "python3 -m"))
    ]


def test_an_installation_and_the_same_once_more(box: Box) -> None:
    done = box.install("--arm", "follower=5A46")
    assert done.returncode == 0, done.stderr
    command = box.root / "usr/local/bin/mtdit"
    assert os.readlink(command) == "/opt/mtdit/current/bin/mtdit"
    assert re.fullmatch(r"0\.1\.0-rtx-[0-9a-f]{8}", box.current())
    assert (box.root / "opt/mtdit" / box.current() / "bin/mtdit").exists()
    assert any("libnvinfer10=10.16.1.11-1+cuda13*" in call for call in box.called)
    assert any(f"--require-hashes -r {DOCKER}/locks/cuda13.txt" in call for call in box.called)
    files = box.files()
    assert not any(".part" in file for file in files)
    again = box.install()
    assert again.returncode == 0, again.stderr
    assert "there already" in again.stdout
    assert not [call for call in box.called if "venv" in call.split() or "pip" in call.split()]
    assert box.files() == files


def test_an_update_keeps_the_version_before_and_no_other(box: Box) -> None:
    names = []
    for wheel in (b"a wheel", b"a newer one", b"the newest"):
        box.wheel.write_bytes(wheel)
        assert box.install().returncode == 0
        names.append(box.current())
    assert len(set(names)) == 3
    kept = {path.name for path in (box.root / "opt/mtdit").iterdir()}
    assert kept == {*names[1:], "current"}


@pytest.mark.parametrize("fault", ["venv", "locks/cuda13.txt", "--no-deps", "import importlib"])
def test_a_failure_leaves_nothing_and_the_old_version_works(box: Box, fault: str) -> None:
    assert box.install(FAIL=fault).returncode != 0
    assert not (box.root / "usr/local/bin/mtdit").exists()
    assert not any("/bin/" in file for file in box.files())
    assert box.install().returncode == 0
    files, current = box.files(), box.current()
    box.wheel.write_bytes(b"another wheel")
    assert box.install(FAIL=fault).returncode != 0
    assert (box.files(), box.current()) == (files, current)


def test_removing_it(box: Box) -> None:
    refused(box("install.sh", "--uninstall"), "not installed in /opt/mtdit")
    box.file("opt/mtdit/policy.mtdit/manifest.json", "a user put this here")
    assert box.install("--arm", "follower=5A46").returncode == 0
    shown = box("install.sh", "--uninstall", "--dry-run")
    assert "would run: rm" in shown.stdout
    assert (box.root / "usr/local/bin/mtdit").is_symlink()
    done = box("install.sh", "--uninstall")
    assert done.returncode == 0, done.stderr
    left = {file for file in box.files() if (box.root / file).is_file()}
    assert left == {"opt/mtdit/policy.mtdit/manifest.json"}


def test_an_installation_for_one_user_touches_only_the_home_folder(box: Box) -> None:
    words, home = ("--target", "rtx", "--without-root", "--wheel", str(box.wheel)), "/home/me"
    done = box("install.sh", *words, HOME=home)
    assert done.returncode == 0, done.stderr
    command = box.root / "home/me/.local/bin/mtdit"
    assert os.readlink(command) == "/home/me/.local/share/mtdit/current/bin/mtdit"
    assert {file.split("/")[0] for file in box.files()} == {"home"}
    assert not [call for call in box.called if call.startswith(("apt", "usermod", "udevadm"))]
    refused(box("install.sh", *words, "--user", "root", HOME=home), "need root", "--user")
    assert box("install.sh", "--without-root", "--uninstall", HOME=home).returncode == 0
    assert not [file for file in box.files() if (box.root / file).is_file()]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--target", "jp9"), ("unknown target 'jp9'", "jp6 or jp7")),
        (("--wheel", "/nowhere.whl"), ("no wheel /nowhere.whl", "make dist")),
        (("--user", "nobody-at-all"), ("no user nobody-at-all", "--user NAME")),
        (("--prefix", "here"), ("--prefix here is no full path",)),
        (("--arm", "follower"), ("--arm 'follower' is not NAME=VALUE", "--list")),
        (("--arm", 'a="; RUN+="x'), ("is not NAME=VALUE",)),
        (("--arm", "a=1", "--camera", "a=2"), ("the name a is given twice",)),
        (("--arm",), ("--arm needs a value",)),
        (("--fast",), ("unknown option --fast", "--help")),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    box: Box, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(box.install(*words), *parts)
    assert box.files() == set()
    assert not [call for call in box.called if call.startswith(("apt-get", "usermod"))]


def test_a_full_disk_a_missing_group_and_another_program(box: Box) -> None:
    df = "echo head\necho 'disk 9 9 12 9% /'\n"
    box.program("df", df)
    refused(box.install(), "has 12 MB free and 4000 are needed", "--prefix")
    (box.programs / "df").unlink()
    box.program("getent", '[ "$1" != group ] || [ "$2" != dialout ]\n')
    refused(box.install(), "no group dialout", "groupadd")
    (box.programs / "getent").unlink()
    box.file("usr/local/bin/mtdit", "another program")
    refused(box.install(), "/usr/local/bin/mtdit is another program")


def test_a_box_whose_apt_knows_no_tensorrt(box: Box) -> None:
    box.program("apt-cache", "exit 100")
    refused(box.install(), "apt knows no TensorRT", "--without-tensorrt")
    assert not (box.root / "opt").exists()
    assert box.install("--without-tensorrt").returncode == 0
    assert not any("nvinfer" in call for call in box.called if call.startswith("apt-get"))


def test_a_tensorrt_that_is_there_stays(box: Box) -> None:
    box.program("dpkg-query", "printf installed")
    assert box.install().returncode == 0
    assert not [call for call in box.called if call.startswith("apt-get")]


# -- what only images do


def test_an_image_for_jetpack_7_takes_tensorrt_from_nvidias_source_for_jetsons(box: Box) -> None:
    box.file("usr/local/cuda-13.2/compat/libcuda.so.1", "for desktop GPUs")
    done = box("packages.sh", "jp7", IMAGE="yes")
    assert done.returncode == 0, done.stderr
    pin = (box.root / "etc/apt/preferences.d/mtdit-tensorrt").read_text()
    assert "Pin: version 10.16.2.10*\nPin-Priority: 1001" in pin
    assert (
        "jetson/common r39.2 main" in (box.root / "etc/apt/sources.list.d/jetson.list").read_text()
    )
    assert not (box.root / "usr/local/cuda-13.2/compat").exists()
    assert any("python3-libnvinfer=10.16.2.10*" in call for call in box.called)


def test_the_image_for_training_has_no_tensorrt(box: Box) -> None:
    assert box("packages.sh", "train", IMAGE="yes").returncode == 0
    assert not (box.root / "etc").exists()
    assert not any("nvinfer" in call for call in box.called if call.startswith("apt-get"))


def test_the_user_of_an_image_is_in_two_groups(box: Box) -> None:
    box.program("getent", '[ "$2" = 1000 ] && echo "ubuntu:x:1000:1000::/home/ubuntu:/bin/bash"')
    box.program("install", "")
    assert box("user.sh", "create").returncode == 0
    assert "userdel --remove ubuntu" in box.called
    assert "usermod --groups dialout,video mtdit" in box.called


# -- names of devices


def test_rules_name_the_arm_by_its_serial_number_and_cameras_by_number_or_port(box: Box) -> None:
    words = "--arm follower=5A46 --camera top=SN1 --camera-port wrist=platform-x-usb-0:2.1:1.0"
    assert box("udev.sh", *words.split()).returncode == 0
    _, arm, top, wrist = (box.root / "etc/udev/rules.d/99-mtdit.rules").read_text().splitlines()
    assert 'SUBSYSTEM=="tty", ATTRS{serial}=="5A46", ENV{ID_MM_DEVICE_IGNORE}="1"' in arm
    assert 'SYMLINK+="mtdit/follower", GROUP="dialout", MODE="0660"' in arm
    assert 'ATTR{index}=="0", ATTRS{serial}=="SN1", SYMLINK+="mtdit/top", GROUP="video"' in top
    assert 'ENV{ID_PATH}=="platform-x-usb-0:2.1:1.0", SYMLINK+="mtdit/wrist"' in wrist


def test_what_is_plugged_in_is_listed_as_words_to_type(box: Box) -> None:
    usb = box.root / "sys/devices/usb1/1-2"
    for name, text in {
        "serial": "5A46\n",
        "1-2:1.0/tty/ttyACM0/dev": "166:0",
        "1-2:1.2/video4linux/video0/index": "0\n",
        "1-2:1.2/video4linux/video0/name": "A camera\n",
        "1-2:1.2/video4linux/video1/index": "1\n",
    }.items():
        box.file(f"sys/devices/usb1/1-2/{name}", text)
    for kind, interface, device in (
        ("tty", "1-2:1.0", "ttyACM0"),
        ("video4linux", "1-2:1.2", "video0"),
        ("video4linux", "1-2:1.2", "video1"),
    ):
        place = usb / interface / kind / device
        (place / "device").symlink_to("../..")
        link = box.root / "sys/class" / kind / device
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)
    listed = box("udev.sh", "--list").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["--arm", "follower=5A46", "#", "ttyACM0"],
        ["--camera", "top=5A46", "#", "video0", "A", "camera"],
    ]


# -- digests of the base images


@pytest.fixture
def pinned(tmp_path: Path, box: Box) -> Callable[..., Done]:
    """`make pin-images` on a copy, with a registry that answers as `skopeo` would."""
    folder = tmp_path / "docker"
    subprocess.run(["cp", "-r", str(DOCKER), str(folder)], check=True)
    box.program("skopeo", 'echo "manifest of ${@: -1}"')

    def pin(*words: str) -> Done:
        path = f"{box.programs}{os.pathsep}{os.environ['PATH']}"
        kept = {"PATH": path, "CALLS": str(box.calls)}
        return subprocess.run(
            [folder / "pin-images.sh", *words], capture_output=True, text=True, env=kept
        )

    return pin


def test_digests_are_filled_in_everywhere_and_stay(
    pinned: Callable[..., Done], tmp_path: Path, box: Box
) -> None:
    assert pinned().returncode == 0
    readme = (tmp_path / "docker/README.md").read_text()
    for file in DOCKERFILES:
        (image,) = bases(file)
        (base,) = bases(tmp_path / "docker" / file.name)
        assert re.fullmatch(rf"{re.escape(image.partition('@')[0])}@sha256:[0-9a-f]{{64}}", base)
        text = (tmp_path / "docker" / file.name).read_text()
        assert text.count(base) == 2, "FROM, and the label"
        assert f"`{base}`" in readme
    before = {path: path.read_text() for path in (tmp_path / "docker").glob("*") if path.is_file()}
    assert pinned().returncode == 0
    assert {path: path.read_text() for path in before} == before
    box.program("skopeo", 'echo "another manifest"')
    assert pinned("--update").returncode == 0
    assert (tmp_path / "docker/README.md").read_text() != readme


def test_a_registry_that_is_out_of_reach_changes_nothing(
    pinned: Callable[..., Done], tmp_path: Path, box: Box
) -> None:
    box.program("skopeo", "exit 1")
    refused(pinned(), "the registry gives no digest")
    for file in DOCKERFILES:
        assert (tmp_path / "docker" / file.name).read_text() == file.read_text()


def test_the_scripts_are_called_by_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "docker/pin-images.sh" in makefile
    assert "docker/lock.sh" in makefile
