"""The doctor's findings: a computer made of files, an arm of virtual servos with faults, films as
cameras.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtdit_robots.bus.sts3215 import BAUD_CODES
from mtdit_robots.cameras import images
from mtdit_robots.cameras.options import CameraOptions
from mtdit_robots.so101.calibration import load, save
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.chain import twin_calibration, twin_registers
from mtdit_robots.twin.registers import ServoRegisters
from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.check import FAIL, OK, WARN, Check, healthy, to_dict
from mtdit_runtime.control.heartbeat import Running, heartbeat
from mtdit_runtime.doctor.arm import check_arm
from mtdit_runtime.doctor.cameras import check_cameras, shift
from mtdit_runtime.doctor.doctor import (
    DoctorOptions,
    check_bundle_files,
    check_clock,
    check_runs,
    check_units,
    doctor,
)
from mtdit_runtime.jetson import JETPACKS, check_platform
from mtdit_runtime.recording.video_encoder import CODECS, VideoSink

PATIENT_S = 2.0
TEGRA = "# R{} (release), REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64"
MODES = (
    "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
)


def by_id(checks: Sequence[Check]) -> dict[str, Check]:
    return {check.id: check for check in checks}


# -- the computer


def jetson(root: Path, release: str, revision: str, mode: int) -> Path:
    for name, text in {
        "etc/nv_tegra_release": TEGRA.format(release, revision),
        "etc/nvpmodel.conf": MODES,
        "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson_in_its_fastest_mode(tmp_path: Path) -> None:
    found = by_id(list(check_platform(jetson(tmp_path, "36", "5.0", 2))))
    assert found["jetpack"] == Check("jetpack", OK, "L4T 36.5.0 (JetPack 6.2.2)")
    assert found["power"] == Check("power", OK, "mode 2 (MAXN_SUPER)")
    assert found["docker"] == Check("docker", OK, "profile jp6 fits")


def test_a_bad_release_and_a_slow_mode(tmp_path: Path) -> None:
    found = by_id(list(check_platform(jetson(tmp_path, "36", "4.7", 0))))
    assert found["jetpack"].status == FAIL
    assert "36.5.0" in found["jetpack"].remedy
    assert found["power"].status == WARN
    assert "nvpmodel -m 2" in found["power"].remedy
    found = by_id(list(check_platform(jetson(tmp_path, "35", "4.1", 2))))
    assert (found["jetpack"].status, "6.1" in found["jetpack"].remedy) == (WARN, True)


@pytest.mark.parametrize("release", [name.split(".", 1) for name in JETPACKS])
def test_every_jetpack_has_a_docker_profile(tmp_path: Path, release: list[str]) -> None:
    found = by_id(list(check_platform(jetson(tmp_path, *release, 2))))
    assert "unknown" not in found["jetpack"].finding
    assert found["docker"].finding == f"profile {'jp6' if release[0] == '36' else 'jp7'} fits"


def test_a_jetpack_that_nobody_knows(tmp_path: Path) -> None:
    found = by_id(list(check_platform(jetson(tmp_path, "41", "1.0", 2))))
    assert "L4T 41.1.0 (unknown JetPack version)" in found["jetpack"].finding
    assert found["docker"].status == WARN
    assert "R36 jp6, R38 jp7, R39 jp7" in found["docker"].remedy


def test_computers_that_are_no_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_platform(tmp_path)) == []
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: ...")
    (found,) = check_platform(tmp_path)
    assert (found.id, found.status, "profile rtx" in found.finding) == ("docker", OK, True)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")  # a Jetson's container without it
    assert list(check_platform(tmp_path)) == []


# -- what a container's health check asks


def test_the_fast_checks_open_nothing_and_load_no_backend(bundle_folder: Path) -> None:
    """In a process of its own, which knows what was imported and opened."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from mtdit_runtime.doctor.doctor import DoctorOptions, doctor\n"
        "sys.addaudithook(lambda event, args: event == 'open' and str(args[0]).startswith(\n"
        "    ('/dev/tty', '/dev/video', '/dev/pts')) and sys.exit(f'opened {args[0]}'))\n"
        "found = doctor(DoctorOptions('so101', '/dev/ttyACM0', cameras={'top': '/dev/video0'},\n"
        f"    bundle=Path({str(bundle_folder)!r}), fast=True))\n"
        "print({check.id for check in found})\n"
        "loaded = {'onnxruntime', 'tensorrt', 'PIL', 'mujoco', 'torch'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("python", "disk", "extra runtime", "bundle", "run"):
        assert repr(name) in done.stdout


def test_a_bundle_that_lacks_a_file(bundle_folder: Path, tmp_path: Path) -> None:
    assert check_bundle_files(bundle_folder).status == OK
    copy = shutil.copytree(bundle_folder, tmp_path / "toy.mtdit")
    (copy / "denoiser.onnx").unlink()
    found = check_bundle_files(copy)
    assert (found.status, "denoiser.onnx" in found.remedy) == (FAIL, True)


def test_runs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTDIT_RUN_DIR", str(tmp_path))
    (none,) = check_runs()
    assert none == Check("run", OK, "none goes on")
    with heartbeat(Running("toy", "open"), print), heartbeat(Running("toy", "shut"), print):
        assert {check.status for check in check_runs()} == {OK}
        assert [check.id for check in check_runs()] == ["run 1", "run 2"]
        silent = list(check_runs(now_s=time.time() + 30))
        assert {check.status for check in silent} == {FAIL}
        assert "no tick for 30 s" in silent[0].finding
    (tmp_path / "run-left.json").write_text('{"policy": "toy", "task": "open"}')
    (killed,) = check_runs()
    assert (killed.status, "may have torque" in killed.finding) == (WARN, True)
    monkeypatch.setenv("MTDIT_RUN_DIR", str(tmp_path / "nowhere"))
    (unwritable,) = check_runs()
    assert (unwritable.status, "takes no heartbeat" in unwritable.finding) == (WARN, True)


def test_a_clock_that_stands_in_the_past(tmp_path: Path) -> None:
    assert check_clock(tmp_path).status == OK
    assert check_clock(tmp_path, now_s=0.0).status == FAIL
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    waiting = check_clock(tmp_path)
    assert (waiting.status, "set-ntp" in waiting.remedy) == (WARN, True)
    (tmp_path / "run/systemd/timesync/synchronized").touch()
    assert check_clock(tmp_path, time.time()).status == OK


def test_nothing_asked_is_healthy_and_plain_json(tmp_path: Path) -> None:
    checks = doctor(DoctorOptions(root=tmp_path))
    assert healthy(checks)
    told = json.loads(json.dumps(to_dict(checks)))
    assert [check["id"] for check in told["checks"]] == [check.id for check in checks]
    assert len({check.id for check in checks}) == len(checks)


def test_a_port_is_asked_for() -> None:
    checks = doctor(DoctorOptions(robot="so101"))
    assert by_id(checks)["port"].status == FAIL
    assert not healthy(checks)


# -- the arm


@pytest.fixture
def chain() -> dict[int, ServoRegisters]:
    servos = twin_registers()
    for servo in servos.values():
        servo.set_present(2047 + servo.get("Homing_Offset"))
    return servos


class Deaf(ServoRegisters):
    """Answers only every other read of its position."""

    asked = 0

    @property
    def servo_id(self) -> int:
        return super().servo_id if self.asked % 2 == 0 else 200


@pytest.fixture
def port(chain: dict[int, ServoRegisters]) -> Iterator[str]:
    def count() -> None:
        for servo in chain.values():
            if isinstance(servo, Deaf):
                servo.asked += 1

    bus = VirtualBus(chain, before_read=count)
    with bus.serve_in_thread():
        yield bus.path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(twin_calibration(), tmp_path / "arm.json")
    return tmp_path / "arm.json"


def examined(port: str, file: Path | None = None, **more: object) -> dict[str, Check]:
    options = {"servo_volts": None, "cycles": 20, "bus_timeout_s": PATIENT_S, **more}
    return by_id(list(check_arm(port, file, None, **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["own", "sdk"])
def test_a_sound_arm(port: str, file: Path, chain: dict[int, ServoRegisters], kind: str) -> None:
    before = {n: servo.read(0, 87) for n, servo in chain.items()}
    found = examined(port, file, kind=kind)
    assert {check.status for check in found.values()} == {OK}, found
    assert found["servo 6 gripper"].finding == "model 777, 7.4 V, 25 C, load 0%"
    assert found["firmware"].finding == "3.10"
    assert found["gains"].finding == (
        "P 32, I 0, D 32; connecting sets P 16, I 0, D 32: "
        "the gains of LeRobot, used for recording demonstrations"
    )
    assert found["bus errors"].finding == "0 of 120 replies lost in 20 cycles"
    assert found["calibration"].finding == "file and servos agree, every joint is inside its range"
    assert {n: servo.read(0, 87) for n, servo in chain.items()} == before, (
        "the doctor writes nothing"
    )


def test_every_fault_has_a_finding_and_a_remedy(
    port: str, file: Path, chain: dict[int, ServoRegisters]
) -> None:
    del chain[1]
    chain[2].set("Firmware_Minor_Version", 9)
    chain[3].set("Model_Number", 2825)
    chain[4].error = 1 | 32
    chain[5].set_present(2047 + chain[5].get("Homing_Offset"), load=0.4, temperature_c=30)
    chain[6].set_present(2047 + chain[6].get("Homing_Offset"), temperature_c=61, voltage_v=6.4)
    found = examined(port, file, bus_timeout_s=0.5)
    statuses = {name: check.status for name, check in found.items()}
    assert (
        statuses["servo 1 shoulder_pan"]
        == statuses["servo 3 elbow_flex"]
        == statuses["servo 4 wrist_flex"]
        == FAIL
    )
    assert (
        statuses["servo 5 wrist_roll"] == statuses["servo 6 gripper"] == statuses["voltage"] == WARN
    )
    assert statuses["firmware"] == FAIL
    assert "reports voltage, overload" in found["servo 4 wrist_flex"].finding
    assert "load 40%" in found["servo 5 wrist_roll"].finding
    assert "shoulder_lift 3.9" in found["firmware"].finding
    assert all(check.remedy for check in found.values() if check.status != OK)
    assert "calibration" not in found, "with a servo missing there is nothing to compare"


def test_the_wrong_supply(port: str, chain: dict[int, ServoRegisters]) -> None:
    assert examined(port, servo_volts=7.4)["voltage"].status == OK
    assert "these are 12 V servos" in examined(port, servo_volts=12)["voltage"].finding
    for servo in chain.values():
        servo.set("Max_Voltage_Limit", 80)
        servo.set("Present_Voltage", 121)
    found = examined(port)["voltage"]
    assert (found.status, "made for 4.0 to 8.0 V" in found.finding) == (FAIL, True)


class Unplugged(ServoRegisters):
    """Loses its power after so many words."""

    words = 0

    @property
    def servo_id(self) -> int:
        self.words -= 1
        return super().servo_id if self.words > 0 else 200


@pytest.mark.parametrize("words", [30, 250, 500, 800])
def test_a_plug_pulled_in_the_middle_is_a_finding(
    port: str, chain: dict[int, ServoRegisters], words: int
) -> None:
    """At whichever check it happens: one line that names the silence, within seconds, and no
    traceback.
    """
    for servo in chain.values():
        servo.__class__, servo.words = Unplugged, words  # type: ignore[attr-defined]
    found = examined(port, cycles=100_000, bus_timeout_s=0.05)
    failed = [check for check in found.values() if check.status == FAIL]
    assert any("answer" in check.finding for check in failed), found


def test_lost_replies_are_counted_per_joint(port: str, chain: dict[int, ServoRegisters]) -> None:
    chain[3].__class__ = Deaf
    found = examined(port, cycles=6, bus_timeout_s=0.3)["bus errors"]
    assert found.status == WARN
    assert "elbow_flex 3" in found.finding


def test_calibrations_that_do_not_fit(
    port: str, file: Path, chain: dict[int, ServoRegisters], tmp_path: Path
) -> None:
    assert examined(port)["calibration"].status == WARN
    assert examined(port, tmp_path / "none.json")["calibration"].status == FAIL
    other = dict(load(file))
    other["elbow_flex"] = dataclasses.replace(other["elbow_flex"], homing_offset=5)
    save(other, tmp_path / "other.json")
    found = examined(port, tmp_path / "other.json")["calibration"]
    assert "elbow_flex homing_offset: file 5" in found.finding
    assert f"mtdit calibrate --port {port} --import" in found.remedy
    chain[2].set_present(4000 + chain[2].get("Homing_Offset"))
    found = examined(port, file)["calibration"]
    assert found.finding == "outside the calibrated range: shoulder_lift"


def policy(units: str, low: float, high: float) -> Any:
    """A manifest as far as these checks look at one."""
    joints = (Joint("elbow_flex", units, low, high, 90.0),)
    return SimpleNamespace(name="toy", units=units, joints=joints)


@pytest.mark.parametrize(
    ("manifest", "said", "status", "says"),
    [
        (policy("degrees", -50, 50), None, OK, "within"),
        (policy("degrees", -50, 179), None, WARN, "elbow_flex -50 to 179, this arm"),
        (policy("normalized", -100, 100), None, OK, "within"),
        (policy("unknown", -100, 100), None, WARN, "the unit of the policy is unknown"),
        (policy("unknown", -100, 100), "normalized", OK, "within"),
    ],
)
def test_a_policys_reach_is_compared_in_its_own_unit(
    port: str, file: Path, manifest: Any, said: str | None, status: str, says: str
) -> None:
    checks = check_arm(port, file, manifest, None, 5, PATIENT_S, units=said)
    reach = by_id(list(checks))["reach"]
    assert reach.status == status
    assert says in reach.finding


def test_a_policy_whose_unit_nobody_knows_is_named() -> None:
    assert check_units(policy("normalized", 0, 1), None).status == OK
    assert check_units(policy("unknown", 0, 1), "degrees").status == OK
    unknown = check_units(policy("unknown", 0, 1), None)
    assert unknown.status == WARN
    assert "--units degrees" in unknown.remedy


def test_servos_at_another_rate_are_found(port: str, chain: dict[int, ServoRegisters]) -> None:
    for servo in chain.values():
        servo.set("Baud_Rate", BAUD_CODES[500_000])
    found = examined(port, bus_timeout_s=0.1)["baud"]
    assert (found.status, "500000" in found.finding, "setup-motors" in found.remedy) == (
        FAIL,
        True,
        True,
    )
    chain.clear()
    assert examined(port, bus_timeout_s=0.1)["baud"].finding == "no servo answers at any baud rate"


# -- cameras


def pattern(right: int = 0, light: int = 0) -> np.ndarray:
    """A table with things on it, shifted by whole pixels."""
    seed = 3
    picture = (
        np.random.default_rng(seed).integers(40, 160, (12, 24, 3)).repeat(8, 0).repeat(8, 1)
    )  # (96, 192, 3)
    return np.roll(picture + light, right, axis=1)[:, 32:160].clip(0, 255).astype(np.uint8)


def film(path: Path, picture: np.ndarray) -> str:
    sink = VideoSink(path, 30, *picture.shape[:2], CODECS["h264"])
    for _ in range(30):
        sink.write(picture)
    sink.close()
    return f"file:{path}"


def looked_at(source: str, folder: Path, **settings: Any) -> dict[str, Check]:
    from mtdit_runtime.bundle.bundle import Bundle
    from mtdit_runtime.bundle.manifest import Camera

    manifest = type("Manifest", (), {"cameras": (Camera("top", 96, 128, None, None),), "fps": 10})()
    given = {"top": CameraOptions(source, **settings)}
    return by_id(list(check_cameras(given, Bundle(folder, manifest), seconds=1.5)))


def test_a_camera_where_it_was_in_training(tmp_path: Path) -> None:
    images.save_png(tmp_path / "reference/top.png", pattern())
    found = looked_at(film(tmp_path / "same.mp4", pattern(light=10)), tmp_path)
    assert {
        name: check.status for name, check in found.items() if not name.endswith(("age", "rate"))
    } == {
        "camera top exposure": OK,
        "camera top view": OK,
    }, found


def test_a_camera_that_was_turned_shows_something_else_or_is_dark(tmp_path: Path) -> None:
    images.save_png(tmp_path / "reference/top.png", pattern())
    moved = looked_at(film(tmp_path / "moved.mp4", pattern(right=9)), tmp_path)["camera top view"]
    assert (moved.status, "+9 px right, +0 px down" in moved.finding) == (WARN, True), moved
    other = (
        np.random.default_rng(9)
        .integers(40, 160, (12, 16, 3))
        .repeat(8, 0)
        .repeat(8, 1)
        .astype(np.uint8)
    )
    assert (
        looked_at(film(tmp_path / "other.mp4", other), tmp_path)["camera top view"].status == WARN
    )
    dark = looked_at(film(tmp_path / "dark.mp4", np.full((96, 128, 3), 5, np.uint8)), tmp_path)
    assert dark["camera top exposure"].status == WARN
    gone = looked_at("file:nowhere.mp4", tmp_path)["camera top"]
    assert (gone.status, "no file nowhere.mp4" in gone.remedy) == (FAIL, True)


def test_a_camera_is_asked_for_its_own_rate_and_size(tmp_path: Path) -> None:
    source = film(tmp_path / "same.mp4", pattern())
    found = looked_at(source, tmp_path, fps=60, rotation=180)
    assert found["camera top rate"].status == WARN
    assert "60 Hz requested" in found["camera top rate"].finding
    found = looked_at(source, tmp_path, width=320)
    assert "is set to 320x96, but the policy was trained on 128x96" in (
        found["camera top size"].remedy
    )


def test_a_shift_is_measured_in_pixels() -> None:
    for right in (-6, 0, 5):
        (x, y), likeness = shift(pattern(), pattern(right))
        assert abs(x - right) < 0.5
        assert abs(y) < 0.5
        assert likeness > 0.2


def test_a_camera_the_policy_needs_is_missed(tmp_path: Path) -> None:
    from mtdit_runtime.bundle.bundle import Bundle
    from mtdit_runtime.bundle.manifest import Camera

    manifest = type(
        "Manifest", (), {"cameras": (Camera("wrist", 96, 128, None, None),), "fps": 10}
    )()
    found = by_id(list(check_cameras({}, Bundle(tmp_path, manifest), seconds=0.1)))
    assert found["camera wrist"].status == FAIL
