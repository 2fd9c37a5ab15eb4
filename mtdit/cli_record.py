"""The commands that drive an arm without a policy or look at its cameras: `mtdit teleoperate`,
`record`, `replay` and `find-cameras`.

Each stage is imported inside its command, and none of them needs torch. They ask no questions: a
key only ends a phase earlier than its timer.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mtdit.options import BusKind, BusOption, BusTimeout, Clock, Json, RobotKind
from mtdit.terminal import console, table, write_json
from mtdit_robots.errors import UserError


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


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command()(teleoperate)
    app.command()(record)
    app.command()(replay)
    app.command("find-cameras")(find_cameras)


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
    from mtdit import driving
    from mtdit_robots.so101 import JOINTS
    from mtdit_runtime.teleoperate import Board, DriveOptions
    from mtdit_runtime.teleoperate import teleoperate as drive

    follower = driving.Follower(
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
    leader = driving.leader(leader_port, leader_calibration, follower)
    board = Board(JOINTS)
    with driving.rigged(follower) as rig:
        options = DriveOptions(
            rig.robot,
            rig.calibration,
            fps,
            duration,
            follower.lockstep,
            max_speed,
            home_s,
            say=console.print,
        )
        with driving.screen(board):
            report = drive(leader, options, board)
    driving.show(report)
    write_json(json_out, report.to_dict())
    driving.leave(report)


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
    from mtdit import driving
    from mtdit_robots.so101 import JOINTS
    from mtdit_runtime.collect import KEYS, Plan, Session
    from mtdit_runtime.demonstrations import Layout, Recording
    from mtdit_runtime.teleoperate import Board, DriveOptions, teleoperate

    plan = Plan(task, episodes, episode_s, reset_s)
    plan.check(fps)
    follower = driving.Follower(
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
    leader = driving.leader(leader_port, leader_calibration, follower)
    with driving.rigged(follower) as rig, driving.keys_if_any() as key:
        layout = Layout(fps, JOINTS, rig.cameras, video=not images)
        recording = Recording(out, layout, resume, codec.value, wait=follower.lockstep)
        session = Session(recording, plan, key, console.print)
        board = Board(JOINTS, session)
        options = DriveOptions(
            rig.robot,
            rig.calibration,
            fps,
            None,
            follower.lockstep,
            max_speed,
            home_s,
            say=console.print,
        )
        try:
            with driving.screen(board, session.status, KEYS):
                report = teleoperate(leader, options, board, tuple(rig.cameras))
        finally:
            session.close()
            console.print(driving.summary(session.outcome, out, recording.n_episodes))
    driving.show(report)
    write_json(
        json_out,
        {
            "session": vars(session.outcome),
            "episodes": recording.n_episodes,
            "run": report.to_dict(),
        },
    )
    if report.ok and recording.n_episodes:
        console.print(f"next: mtdit train --dataset {quote(str(out))}")
    driving.leave(report)


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
    from mtdit import driving
    from mtdit_runtime.demonstrations import read_episode
    from mtdit_runtime.replay import play
    from mtdit_runtime.teleoperate import DriveOptions

    recorded = read_episode(dataset, episode)
    fps = recorded.fps
    follower = driving.Follower(
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
    with driving.rigged(follower) as rig:
        options = DriveOptions(
            rig.robot,
            rig.calibration,
            fps,
            None,
            follower.lockstep,
            max_speed,
            home_s,
            say=console.print,
        )
        report = play(recorded, options)
    driving.show_errors("error to the action, one tick later", report.tracking)
    driving.show_errors("error to the recorded movement", report.recorded)
    driving.show(report.run)
    write_json(json_out, report.to_dict())
    driving.leave(report.run)


def find_cameras(
    camera: Cameras = None,
    height: Height = HEIGHT,
    width: Width = WIDTH,
    fps: Annotated[
        float,
        typer.Option(min=1.0, max=1000.0, help="Frame rate to request from every camera, in Hz."),
    ] = 30.0,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="Seconds to run all cameras at once.")
    ] = 3.0,
    snapshots: Annotated[
        Path | None,
        typer.Option(help="Folder for a PNG of each camera's last frame; default: none is saved."),
    ] = None,
    dev: Annotated[Path, typer.Option(help="Folder in which to look for camera devices.")] = Path(
        "/dev"
    ),
    json_out: Json = None,
) -> None:
    """List the cameras and their modes, and measure what they deliver when all run at once."""
    from mtdit import driving
    from mtdit_robots.camera_check import save_png, watch
    from mtdit_robots.v4l2 import find_devices

    devices = find_devices(dev)
    found = {Path(device.path).name: device.path for device in devices if not device.problem}
    sources = dict(driving.pairs("--camera", camera)) if camera else found
    if not sources and not devices:
        raise UserError(
            f"no camera in {dev}: plug one in and check `dmesg`, or name one with --camera"
        )
    watched = (
        watch(sources, dict.fromkeys(sources, (height, width)), fps, seconds) if sources else []
    )
    for one in watched if snapshots else ():
        if one.frame is not None and snapshots is not None:
            save_png(snapshots / f"{one.name}.png", one.frame)
    _show_devices(devices)
    _show_watched(watched, fps)
    result = {
        "devices": [vars(device) | {"modes": [vars(m) for m in device.modes]} for device in devices]
    }
    write_json(json_out, {**result, "watched": [_plain(one) for one in watched]})
    if any(one.problem for one in watched) or any(device.problem for device in devices):
        raise typer.Exit(1)


def _show_devices(devices: list[Any]) -> None:
    for device in devices:
        console.print(f"{device.path}  {device.card}  {device.bus}".rstrip())
        if device.problem:
            console.print(f"  {device.problem}")
        for mode in device.modes:
            size = f"{mode.width}x{mode.height}" if mode.width else "any size"
            rates = ", ".join(f"{rate:g}" for rate in mode.rates_hz)
            console.print(f"  {mode.pixel_format} {size} {rates} Hz")


def _show_watched(watched: list[Any], fps: float) -> None:
    rows = [
        (
            one.name,
            one.pixel_format,
            f"{one.rate_hz:.1f} of {fps:g}",
            f"{one.oldest_s * 1e3:.0f}",
            one.problem or (f"too {one.exposure}" if one.exposure else "ok"),
        )
        for one in watched
    ]
    columns = ["camera", "format", "Hz", "oldest frame, ms", ""]
    if rows:
        console.print(table("all cameras at once", columns, rows))


def _plain(watched: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(watched).items() if key != "frame"} | {
        "exposure": watched.exposure
    }
