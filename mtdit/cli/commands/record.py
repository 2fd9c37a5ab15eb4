"""The commands that drive an arm without a policy or look at its cameras: `mtdit teleoperate`,
`record`, `replay` and `find-cameras`.

Each stage is imported inside its command, and none of them needs torch. They ask no questions: a
key only ends a phase earlier than its timer.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from mtdit.cli.options import BusKind, BusOption, BusTimeout, Clock, Json, RobotKind
from mtdit.cli.terminal.console import console, write_json


class CodecName(str, Enum):
    h264 = "h264"
    av1 = "av1"


# Unlike `mtdit run`, these commands never fall back to the twin: they are made for a person at an
# arm, and one who forgets --port is asked for it.
Robot = Annotated[
    RobotKind,
    typer.Option("--robot", help="Robot to drive: so101 (a real arm) or twin (the simulated one)."),
]
Port = Annotated[
    str | None,
    typer.Option(
        "--port", help="Serial port of the follower arm, e.g. /dev/ttyACM0; required for so101."
    ),
]
CalibrationName = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        help="Calibration of the follower arm: a JSON file, or the arm's id in LeRobot; required "
        "for so101.",
    ),
]
LeaderPort = Annotated[
    str | None, typer.Option(help="Serial port of the leader arm, e.g. /dev/ttyACM1.")
]
LeaderCalibration = Annotated[
    str | None,
    typer.Option(help="Calibration of the leader arm: a JSON file, or the arm's id in LeRobot."),
]
Cameras = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="Camera as NAME=SOURCE, repeat for each camera; SOURCE is a device (/dev/video0), "
        "file:CLIP.mp4 or dataset:FOLDER:CAMERA.",
    ),
]
Height = Annotated[int, typer.Option(min=16, help="Frame height in pixels, all cameras.")]
Width = Annotated[int, typer.Option(min=16, help="Frame width in pixels, all cameras.")]
Fps = Annotated[int, typer.Option(min=1, max=200, help="Control ticks and frames per second.")]
MaxSpeed = Annotated[
    float,
    typer.Option(
        min=1.0,
        max=10_000.0,
        help="Maximum speed of the follower's joints in degrees per second (gripper: percent).",
    ),
]
HomeS = Annotated[
    float,
    typer.Option(
        "--home-seconds",
        min=0.0,
        max=60.0,
        help="Seconds for the return to the start pose at the end; 0: stay there.",
    ),
]
TwinClock = Annotated[
    Clock,
    typer.Option(
        "--clock", help="Clock of the twin: real time, or lockstep (as fast as possible)."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed of the twin's scene.")]

HEIGHT, WIDTH = 480, 640


def teleoperate(
    robot: Robot = RobotKind.so101,
    port: Port = None,
    calibration: CalibrationName = None,
    leader_port: LeaderPort = None,
    leader_calibration: LeaderCalibration = None,
    camera: Cameras = None,
    height: Height = HEIGHT,
    width: Width = WIDTH,
    fps: Fps = 30,
    duration: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop after this many seconds; default: at Ctrl-C."),
    ] = None,
    max_speed: MaxSpeed = 300.0,
    home_s: HomeS = 3.0,
    bus_timeout: BusTimeout = 0.05,
    bus: BusOption = BusKind.own,
    clock: TwinClock = Clock.real,
    seed: Seed = 0,
    json_out: Json = None,
) -> None:
    """Drive a follower arm with a leader arm; nothing is recorded."""
    from mtdit.cli import rig as cli_rig
    from mtdit.cli.terminal import live, tables
    from mtdit_robots.so101.joints import JOINTS
    from mtdit_runtime.teleoperate import DriveOptions, LiveStatus
    from mtdit_runtime.teleoperate import teleoperate as drive

    follower = cli_rig.Follower(
        robot.value,
        port,
        calibration,
        camera or (),
        (height, width),
        fps,
        bus_timeout,
        clock.value,
        seed,
        bus=bus.value,
    )
    leader = cli_rig.leader(leader_port, leader_calibration, follower)
    board = LiveStatus(JOINTS)
    with cli_rig.open_rig(follower) as rig:
        options = DriveOptions(fps, duration, follower.lockstep, max_speed, home_s)
        with live.screen(board):
            report = drive(rig.robot, leader, options, on_tick=board, say=console.print)
    tables.show(report)
    write_json(json_out, report.to_dict())
    live.leave(report)


def record(
    out: Annotated[Path, typer.Option(help="Folder to write the LeRobotDataset to.")],
    task: Annotated[
        str,
        typer.Option(
            help='Instruction that the demonstrations show, e.g. "put the cube into the box".'
        ),
    ],
    robot: Robot = RobotKind.so101,
    port: Port = None,
    calibration: CalibrationName = None,
    leader_port: LeaderPort = None,
    leader_calibration: LeaderCalibration = None,
    camera: Cameras = None,
    height: Height = HEIGHT,
    width: Width = WIDTH,
    fps: Fps = 30,
    episodes: Annotated[
        int, typer.Option(min=1, help="Number of episodes to save in this session.")
    ] = 50,
    episode_s: Annotated[
        float,
        typer.Option(
            "--episode-seconds",
            min=0.1,
            max=3600.0,
            help="Seconds after which an episode ends; a key ends it earlier.",
        ),
    ] = 60.0,
    reset_s: Annotated[
        float,
        typer.Option(
            "--reset-seconds",
            min=0.0,
            max=86400.0,
            help="Pause between episodes to reset the scene, in seconds; teleoperation stays on.",
        ),
    ] = 60.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Add episodes to the dataset in --out; default: a new dataset."
        ),
    ] = False,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Save frames as PNG instead of video: lossless, but 20 times larger.",
        ),
    ] = False,
    codec: Annotated[
        CodecName,
        typer.Option(help="Video codec: h264 (fast) or av1 (LeRobot's default)."),
    ] = CodecName.h264,
    max_speed: MaxSpeed = 300.0,
    home_s: HomeS = 3.0,
    bus_timeout: BusTimeout = 0.05,
    bus: BusOption = BusKind.own,
    clock: TwinClock = Clock.real,
    seed: Seed = 0,
    json_out: Json = None,
) -> None:
    """Record demonstrations with a leader arm, as a LeRobotDataset v3.

    Keys: right arrow or ENTER finishes the episode or the pause, left arrow or r re-records the
    episode, q or ESC stops after this episode.
    """
    from mtdit.cli import rig as cli_rig
    from mtdit.cli.terminal import live, tables
    from mtdit_robots.so101.joints import JOINTS
    from mtdit_runtime.record import RecordOptions
    from mtdit_runtime.record import record as drive
    from mtdit_runtime.recording.session import KEYS
    from mtdit_runtime.teleoperate import LiveStatus

    options = RecordOptions(
        episodes,
        episode_s,
        reset_s,
        fps,
        resume,
        video=not images,
        codec=codec.value,
        lockstep=robot is RobotKind.twin and clock is Clock.lockstep,
        max_speed=max_speed,
        home_s=home_s,
    )
    options.session(task)  # a wrong option is an error before cameras are opened
    follower = cli_rig.Follower(
        robot.value,
        port,
        calibration,
        camera or (),
        (height, width),
        fps,
        bus_timeout,
        clock.value,
        seed,
        task,
        strict=True,
        bus=bus.value,
    )
    leader = cli_rig.leader(leader_port, leader_calibration, follower)
    board = LiveStatus(JOINTS)
    with (
        cli_rig.open_rig(follower) as rig,
        live.keys_if_any() as keys,
        live.screen(board, KEYS),
    ):
        report, session = drive(
            rig.robot, leader, out, task, options, keys=keys, status=board, say=console.print
        )
    tables.show(report)
    write_json(
        json_out,
        {"session": vars(session), "episodes": session.episodes, "run": report.to_dict()},
    )
    if report.ok and session.episodes:
        console.print(f"next: mtdit train --dataset {quote(str(out))}")
    live.leave(report)


def replay(
    dataset: Annotated[Path, typer.Option(help="Folder of the LeRobotDataset.")],
    episode: Annotated[
        int, typer.Option(min=0, help="Number of the episode to replay, from 0.")
    ] = 0,
    robot: Robot = RobotKind.so101,
    port: Port = None,
    calibration: CalibrationName = None,
    max_speed: MaxSpeed = 300.0,
    home_s: HomeS = 3.0,
    bus_timeout: BusTimeout = 0.05,
    bus: BusOption = BusKind.own,
    clock: TwinClock = Clock.real,
    seed: Seed = 0,
    json_out: Json = None,
) -> None:
    """Replay a recorded episode's actions on an arm, and report how well it followed them."""
    from mtdit.cli import rig as cli_rig
    from mtdit.cli.terminal import live, tables
    from mtdit_runtime.recording.dataset_reader import read_episode
    from mtdit_runtime.replay import play
    from mtdit_runtime.teleoperate import DriveOptions

    recorded = read_episode(dataset, episode)
    fps = recorded.fps
    follower = cli_rig.Follower(
        robot.value,
        port,
        calibration,
        (),
        (64, 64),
        fps,
        bus_timeout,
        clock.value,
        seed,
        recorded.task,
        bus=bus.value,
    )
    console.print(
        f"episode {episode}: {recorded.task!r}, {len(recorded.actions) / recorded.fps:.1f} s"
    )
    with cli_rig.open_rig(follower) as rig:
        options = DriveOptions(fps, None, follower.lockstep, max_speed, home_s)
        report = play(rig.robot, recorded, options, say=console.print)
    tables.show_errors("error to the action, one tick later", report.tracking)
    tables.show_errors("error to the recorded movement", report.recorded)
    tables.show(report.run)
    write_json(json_out, report.to_dict())
    live.leave(report.run)
