"""What the options of the commands are called, their type, limits and help, each once.

An option has the name of the field that it sets; `mtdit.cli.flags.FLAGS` lists the exceptions.
Options that several commands take together are one dataclass here. The options of `mtdit train`
are the fields of `TrainConfig`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mtdit.cli.flags import option
from mtdit.cli.terminal.console import console
from mtdit_robots.errors import UserError

OUTPUTS = Path("outputs")
RUN, BUNDLE = OUTPUTS / "train", OUTPUTS / "policy.mtdit"
DEV = Path("/dev")
MAX_SEED = 2**31 - 1


class Backend(str, Enum):
    auto = "auto"
    onnx = "onnx"
    cuda = "cuda"
    tensorrt = "tensorrt"


class RobotKind(str, Enum):
    twin = "twin"
    so101 = "so101"


class CheckedRobot(str, Enum):
    none = "none"
    twin = "twin"
    so101 = "so101"


class ClockKind(str, Enum):
    real = "real"
    lockstep = "lockstep"


class BusKind(str, Enum):
    own = "own"
    sdk = "sdk"


class UnitKind(str, Enum):
    degrees = "degrees"
    normalized = "normalized"


# -- the policy

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, NAME.mtdit.")
]
BundleOption = Annotated[
    Path,
    option("Policy", "Bundle to run: a folder NAME.mtdit that `mtdit export` wrote.", "--bundle"),
]
EvalBundle = Annotated[
    Path | None, option("Policy", f"Bundle to evaluate, NAME.mtdit; default: {BUNDLE}.", "--bundle")
]
DoctorBundle = Annotated[
    Path | None,
    option(
        "Checks", "Bundle to compare the computer, arm and cameras with, NAME.mtdit.", "--bundle"
    ),
]
BackendOption = Annotated[
    Backend,
    option(
        "Policy",
        "Backend that computes the policy: onnx, cuda, tensorrt, or auto (the fastest one that "
        "works here).",
        "--backend",
    ),
]

Units = Annotated[
    UnitKind | None,
    option(
        "Robot",
        "Unit of the body joints: degrees, or normalized (-100..100, LeRobot's "
        "use_degrees=false); default: what the bundle or dataset says; needed where it says none.",
        "--units",
    ),
]

RenameMap = Annotated[
    str | None,
    option(
        "Cameras",
        "Names of the robot's cameras in the policy, as LeRobot's rename_map: "
        "ROBOT_NAME=POLICY_NAME, comma-separated, or JSON; default: the names are the same.",
        "--rename-map",
    ),
]

ChunkTimeout = Annotated[
    float | None,
    option(
        "Policy",
        "Seconds after which a chunk of actions that is not computed ends the run; default: 10 "
        "times the measured latency, at least 3.",
        "--chunk-timeout",
        min=0.1,
        max=3600.0,
    ),
]

# -- the arm

Robot = Annotated[
    RobotKind,
    option("Robot", "Robot to drive: so101 (a real arm) or twin (the simulated one).", "--robot"),
]
RunRobot = Annotated[
    RobotKind | None,
    option(
        "Robot",
        "Robot to drive: so101 (a real arm) or twin (the simulated one); "
        "default: so101 if --port is given, else twin.",
        "--robot",
    ),
]
DoctorRobot = Annotated[
    CheckedRobot,
    option("Robot", "Robot to check: none, twin or so101 (a real arm).", "--robot"),
]
Port = Annotated[
    str | None,
    option(
        "Robot", "Serial port of the real arm, e.g. /dev/ttyACM0; required for so101.", "--port"
    ),
]
NeededArmPort = Annotated[
    str, option("Robot", "Serial port of the arm, e.g. /dev/ttyACM0.", "--port")
]
ArmPort = Annotated[
    str | None, option("Robot", "Serial port of the arm, e.g. /dev/ttyACM0.", "--port")
]
CalibrationName = Annotated[
    str | None,
    option(
        "Robot",
        "Calibration of the real arm: a JSON file, or the arm's id in LeRobot.",
        "--calibration",
    ),
]
Bus = Annotated[
    BusKind,
    option(
        "Robot",
        "Servo driver: own (mtdit's) or sdk (Feetech's SDK); both behave the same.",
        "--bus",
    ),
]
BusTimeout = Annotated[
    float,
    option("Robot", "Seconds a servo may take to answer.", "--bus-timeout", min=0.01, max=10.0),
]
Clock = Annotated[
    ClockKind,
    option("Robot", "Clock of the twin: real time, or lockstep (as fast as possible).", "--clock"),
]
CameraList = Annotated[
    list[str] | None,
    option(
        "Cameras",
        "Camera as NAME=SOURCE, repeat for each camera; SOURCE is a device (/dev/video0), "
        "file:CLIP.mp4 or dataset:FOLDER:CAMERA; or NAME.SETTING=VALUE, where SETTING is width, "
        "height, fps, fourcc, rotation or warmup_s.",
        "--camera",
    ),
]
Height = Annotated[
    int, option("Cameras", "Frame height in pixels, all cameras.", "--height", min=16)
]
Width = Annotated[int, option("Cameras", "Frame width in pixels, all cameras.", "--width", min=16)]
Dev = Annotated[Path, option("Machine", "Folder in which to look for devices.", "--dev")]
Duration = Annotated[
    float | None,
    option(
        "Length", "Stop after this many seconds; default: no time limit.", "--duration", min=0.0
    ),
]
Seed = Annotated[
    int,
    option(
        "Start",
        "Random seed; the same seed gives the same result.",
        "--seed",
        min=0,
        max=MAX_SEED,
    ),
]
SPEED_LIMITS: dict[str, Any] = {"min": 1.0, "max": 10_000.0}
HOME_LIMITS: dict[str, Any] = {"min": 0.0, "max": 60.0}
MaxSpeed = Annotated[
    float,
    option(
        "Motion",
        "Maximum speed of the follower's joints in degrees per second (gripper: percent).",
        "--max-speed",
        **SPEED_LIMITS,
    ),
]
RunMaxSpeed = Annotated[
    float | None,
    option(
        "Motion",
        "Maximum speed of every joint in degrees per second (gripper: percent); "
        "default: only the limits from the training data.",
        "--max-speed",
        **SPEED_LIMITS,
    ),
]
Home = Annotated[
    float,
    option(
        "Motion",
        "Seconds for the return to the start pose at the end; 0: stay there.",
        "--home-seconds",
        **HOME_LIMITS,
    ),
]
RunHome = Annotated[
    float | None,
    option(
        "Motion",
        "Seconds for the return to the start pose at the end, 0: stay there; "
        "default: 3 for a real arm, 0 for the twin.",
        "--home-seconds",
        **HOME_LIMITS,
    ),
]


@dataclass(frozen=True)
class ArmOptions:
    """The follower arm, of the commands that drive it without a policy.

    Unlike `mtdit run`, they never fall back to the twin: they are made for a person at an arm, and
    one who forgets --port is asked for it.
    """

    robot: Robot = RobotKind.so101
    port: Port = None
    calibration: CalibrationName = None
    bus: Bus = BusKind.own
    bus_timeout: BusTimeout = 0.05
    clock: Clock = ClockKind.real
    seed: Seed = 0
    units: Units = None
    max_speed: MaxSpeed = 300.0
    home_s: Home = 3.0

    @property
    def said_units(self) -> str | None:
        """The unit that a person said; None: nobody did."""
        return None if self.units is None else self.units.value

    @property
    def lockstep(self) -> bool:
        return self.robot is RobotKind.twin and self.clock is ClockKind.lockstep


LeaderPort = Annotated[
    str | None,
    option("Leader", "Serial port of the leader arm, e.g. /dev/ttyACM1.", "--leader-port"),
]
LeaderCalibration = Annotated[
    str | None,
    option(
        "Leader",
        "Calibration of the leader arm: a JSON file, or the arm's id in LeRobot.",
        "--leader-calibration",
    ),
]


@dataclass(frozen=True)
class LeaderOptions:
    """The leader arm and the frames that are shown or recorded meanwhile."""

    leader_port: LeaderPort = None
    leader_calibration: LeaderCalibration = None
    camera: CameraList = None
    height: Height = 480
    width: Width = 640
    fps: Annotated[
        int, option("Cameras", "Control ticks and frames per second.", "--fps", min=1, max=200)
    ] = 30


# -- the result


def _json_place(where: Path | None) -> Path | None:
    """With `--json -` standard output gets only JSON, and everything else goes to standard error.

    UserError for a file that cannot be written: before the work starts, not after it.
    """
    console.stderr = str(where) == "-"
    if where is not None and not console.stderr:
        _check_writable(where)
    return where


def _check_writable(file: Path) -> None:
    there = next(path for path in (file, *file.absolute().parents) if os.path.lexists(path))
    if there == file and file.is_dir():
        raise UserError(f"--json {file} is a folder: name a file in it")
    if there != file and not there.is_dir():
        raise UserError(f"{there} is not a folder: choose another place for --json")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there} is not writable: choose another place for --json")


Json = Annotated[
    Path | None,
    option(
        "Results",
        "Also write the result to this file as JSON; - for standard output.",
        "--json",
        callback=_json_place,
    ),
]
Overwrite = Annotated[
    bool,
    option(
        "Start",
        "Replace the result of an earlier run in --out; default: stop if there is one.",
        "--overwrite",
    ),
]
