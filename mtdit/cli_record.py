"""The commands that drive an arm without a policy, and look at its cameras: teleoperate, record,
replay, find-cameras.

Knows their words and options; each stage is imported inside its command, and none of them needs
torch. Nothing asks a question: keys only shorten what a timer would end.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mtdit.options import BusKind, BusOption, Clock, Json, RobotKind
from mtdit.terminal import console, table, write_json
from mtdit_robots.errors import UserError


class CodecName(str, Enum):
    h264 = "h264"
    av1 = "av1"


Robot = Annotated[RobotKind, typer.Option("--robot", help="A real SO-101 or the simulated one.")]
Port = Annotated[str | None, typer.Option("--port", help="Serial port of the follower.")]
CalibrationName = Annotated[
    str | None,
    typer.Option(
        "--calibration", help="The follower's calibration: a file, or LeRobot's id of the arm."
    ),
]
LeaderPort = Annotated[str | None, typer.Option(help="Serial port of the leader.")]
LeaderCalibration = Annotated[
    str | None, typer.Option(help="The leader's calibration: a file, or LeRobot's id.")
]
Cameras = Annotated[
    list[str] | None,
    typer.Option(
        "--camera", help="name=source: a device, file:clip.mp4 or dataset:FOLDER:camera; repeat."
    ),
]
Height = Annotated[int, typer.Option(min=16, help="Of every camera, pixels.")]
Width = Annotated[int, typer.Option(min=16, help="Of every camera, pixels.")]
Fps = Annotated[int, typer.Option(min=1, max=200, help="Ticks per second.")]
MaxSpeed = Annotated[
    float,
    typer.Option(
        min=1.0, max=10_000.0, help="Degrees per second the follower may be told to move."
    ),
]
HomeS = Annotated[
    float,
    typer.Option(
        "--home-seconds", min=0.0, max=60.0, help="Ride back to the start pose; 0: stay there."
    ),
]
Patience = Annotated[
    float, typer.Option(min=0.01, max=10.0, help="Seconds a servo may take to answer.")
]
TwinClock = Annotated[
    Clock, typer.Option("--clock", help="Of the twin: real time, or as fast as it goes.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the twin's placements.")]

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
        float | None, typer.Option(min=0.0, help="Seconds; default: until Ctrl-C.")
    ] = None,
    max_speed: MaxSpeed = 300.0,
    home_s: HomeS = 3.0,
    patience: Patience = 0.05,
    bus: BusOption = BusKind.own,
    clock: TwinClock = Clock.real,
    seed: Seed = 0,
    json_out: Json = None,
) -> None:
    """Drive a follower with a leader arm; nothing is recorded."""
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
        patience,
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
    out: Annotated[Path, typer.Option(help="Folder of the LeRobotDataset.")],
    task: Annotated[str, typer.Option(help='What is shown, e.g. "put the cube into the box".')],
    robot: Robot = RobotKind.so101,
    port: Port = None,
    calibration: CalibrationName = None,
    leader_port: LeaderPort = None,
    leader_calibration: LeaderCalibration = None,
    camera: Cameras = None,
    height: Height = HEIGHT,
    width: Width = WIDTH,
    fps: Fps = 30,
    episodes: Annotated[int, typer.Option(min=1, help="To keep in this session.")] = 50,
    episode_s: Annotated[
        float,
        typer.Option("--episode-seconds", min=0.1, max=3600.0, help="Longest an episode gets."),
    ] = 60.0,
    reset_s: Annotated[
        float,
        typer.Option(
            "--reset-seconds",
            min=0.0,
            max=86400.0,
            help="Pause to lay the table again; the arm follows.",
        ),
    ] = 60.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Add to the recording that --out holds.")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images", help="PNG instead of video: exact, 20 x larger.")
    ] = False,
    codec: Annotated[
        CodecName, typer.Option(help="h264 is the quick one, av1 LeRobot's own.")
    ] = CodecName.h264,
    max_speed: MaxSpeed = 300.0,
    home_s: HomeS = 3.0,
    patience: Patience = 0.05,
    bus: BusOption = BusKind.own,
    clock: TwinClock = Clock.real,
    seed: Seed = 0,
    json_out: Json = None,
) -> None:
    """Record demonstrations with a leader arm, as a LeRobotDataset v3.

    Keys: right arrow or ENTER goes on early, left arrow or r once more, q or ESC ends after this
    episode.
    """
    from mtdit import driving
    from mtdit_robots.so101 import JOINTS
    from mtdit_runtime.collect import KEYS, Plan, Session
    from mtdit_runtime.demonstrations import Layout, Recording
    from mtdit_runtime.teleoperate import Board, DriveOptions, teleoperate

    plan = Plan(task, episodes, episode_s, reset_s)
    plan.check(fps)
    follower = driving.Follower(
        robot.value, port, calibration, camera or (), (height, width), fps, patience, clock.value, seed, task,
        strict=True, bus=bus.value,
    )  # fmt: skip
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
    dataset: Annotated[Path, typer.Option(help="Folder of a LeRobotDataset.")],
    episode: Annotated[int, typer.Option(min=0, help="Which one, from 0.")] = 0,
    robot: Robot = RobotKind.so101,
    port: Port = None,
    calibration: CalibrationName = None,
    max_speed: MaxSpeed = 300.0,
    home_s: HomeS = 3.0,
    patience: Patience = 0.05,
    bus: BusOption = BusKind.own,
    clock: TwinClock = Clock.real,
    seed: Seed = 0,
    json_out: Json = None,
) -> None:
    """Play a recorded episode's actions on an arm, and say how well it followed."""
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
        patience,
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
    driving.show_errors("behind its action, one tick later", report.tracking)
    driving.show_errors("beside the recorded movement", report.recorded)
    driving.show(report.run)
    write_json(json_out, report.to_dict())
    driving.leave(report.run)


def find_cameras(
    camera: Cameras = None,
    height: Height = HEIGHT,
    width: Width = WIDTH,
    fps: Annotated[float, typer.Option(min=1.0, max=1000.0, help="Asked of every camera.")] = 30.0,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="Watch all of them together for so long.")
    ] = 3.0,
    snapshots: Annotated[
        Path | None, typer.Option(help="Write a PNG of each camera into this folder.")
    ] = None,
    dev: Annotated[Path, typer.Option(help="Device folder.")] = Path("/dev"),
    json_out: Json = None,
) -> None:
    """Cameras, what they offer, and what they deliver when all of them run at once."""
    from mtdit import driving
    from mtdit_robots.camera_check import save_png, watch
    from mtdit_robots.v4l2 import find_devices

    devices = find_devices(dev)
    found = {Path(device.path).name: device.path for device in devices if not device.problem}
    sources = dict(driving.pairs("--camera", camera)) if camera else found
    if not sources and not devices:
        raise UserError(
            f"no camera below {dev}: plug one in, and look at `dmesg`; or name one with --camera"
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
            console.print(
                f"  {mode.pixel_format} {size} {', '.join(f'{rate:g}' for rate in mode.rates_hz)} Hz"
            )


def _show_watched(watched: list[Any], fps: float) -> None:
    rows = [
        (one.name, one.pixel_format, f"{one.rate_hz:.1f} of {fps:g}", f"{one.oldest_s * 1e3:.0f}",
         one.problem or (f"too {one.exposure}" if one.exposure else "ok"))
        for one in watched
    ]  # fmt: skip
    if rows:
        console.print(table("all at once", ["camera", "format", "Hz", "oldest ms", ""], rows))


def _plain(watched: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(watched).items() if key != "frame"} | {
        "exposure": watched.exposure
    }
