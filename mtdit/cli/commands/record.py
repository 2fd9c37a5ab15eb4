"""The commands that drive an arm without a policy: `mtdit teleoperate`, `record` and `replay`; and
`repair`, for what a killed recorder leaves.

They need no torch and ask no questions: a key only ends a phase earlier than its timer.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from mtdit.cli.flags import grouped, option
from mtdit.cli.options import ArmOptions, Duration, Json, LeaderOptions, RobotKind
from mtdit.cli.terminal.console import console, write_json
from mtdit_robots.units import DEGREES, check_arm_units

if TYPE_CHECKING:
    from mtdit_runtime.teleoperate import DriveOptions


class CodecName(str, Enum):
    h264 = "h264"
    av1 = "av1"


@grouped
def teleoperate(
    arm: ArmOptions, leader: LeaderOptions, duration: Duration = None, json_out: Json = None
) -> None:
    """Drive a follower arm with a leader arm; nothing is recorded."""
    from mtdit.cli.rig import leader_arm, open_rig
    from mtdit.cli.terminal import live, tables
    from mtdit_robots.so101.joints import JOINTS
    from mtdit_runtime.teleoperate import LiveStatus
    from mtdit_runtime.teleoperate import teleoperate as drive

    units = arm.said_units or DEGREES
    leading = leader_arm(leader.leader_port, leader.leader_calibration, arm, units)
    status = LiveStatus(JOINTS)
    with (
        open_rig(arm, leader.camera, (leader.height, leader.width), leader.fps) as rig,
        live.screen(status),
    ):
        options = _drive_options(arm, leader.fps, duration)
        report = drive(rig.robot, leading, options, on_tick=status, say=console.print)
    console.print(tables.report_table(report))
    write_json(json_out, report.to_dict())
    live.leave(report)


@grouped
def record(
    out: Annotated[Path, option("Results", "Folder to write the LeRobotDataset to.")],
    task: Annotated[
        str,
        option(
            "Session",
            'Instruction that the demonstrations show, e.g. "put the cube into the box".',
        ),
    ],
    arm: ArmOptions,
    leader: LeaderOptions,
    episodes: Annotated[
        int, option("Session", "Number of episodes to save in this session.", min=1)
    ] = 50,
    episode_s: Annotated[
        float,
        option(
            "Session",
            "Seconds after which an episode ends; a key ends it earlier.",
            "--episode-seconds",
            min=0.1,
            max=3600.0,
        ),
    ] = 60.0,
    reset_s: Annotated[
        float,
        option(
            "Session",
            "Pause between episodes to reset the scene, in seconds; teleoperation stays on.",
            "--reset-seconds",
            min=0.0,
            max=86400.0,
        ),
    ] = 60.0,
    resume: Annotated[
        bool,
        option(
            "Start", "Add episodes to the dataset in --out; default: a new dataset.", "--resume"
        ),
    ] = False,
    images: Annotated[
        bool,
        option(
            "Results",
            "Save frames as PNG instead of video: lossless, but 20 times larger.",
            "--images",
        ),
    ] = False,
    codec: Annotated[
        CodecName, option("Results", "Video codec: h264 (fast) or av1 (LeRobot's default).")
    ] = CodecName.h264,
    json_out: Json = None,
) -> None:
    """Record demonstrations with a leader arm, as a LeRobotDataset v3.

    Keys: right arrow or ENTER finishes the episode or the pause, left arrow or r re-records the
    episode, q or ESC stops after this episode.
    """
    from mtdit.cli.rig import leader_arm, open_rig
    from mtdit.cli.terminal import live, tables
    from mtdit_robots.so101.joints import JOINTS
    from mtdit_runtime.record import RecordOptions, recording_units
    from mtdit_runtime.record import record as drive
    from mtdit_runtime.recording.session import KEYS
    from mtdit_runtime.teleoperate import LiveStatus

    options = RecordOptions(
        episodes,
        episode_s,
        reset_s,
        leader.fps,
        resume,
        video=not images,
        codec=codec.value,
        lockstep=arm.lockstep,
        max_speed=arm.max_speed,
        home_s=arm.home_s,
        units=arm.said_units,
    )
    options.session(task)  # a wrong option is an error before cameras are opened
    units = recording_units(out, resume, arm.said_units)
    leading = leader_arm(leader.leader_port, leader.leader_calibration, arm, units)
    status, size = LiveStatus(JOINTS), (leader.height, leader.width)
    with (
        open_rig(arm, leader.camera, size, leader.fps, task) as rig,
        live.keys_if_any() as keys,
        live.screen(status, KEYS),
    ):
        report, session = drive(
            rig.robot, leading, out, task, options, keys=keys, status=status, say=console.print
        )
    console.print(tables.report_table(report))
    write_json(
        json_out,
        {"session": vars(session), "episodes": session.episodes, "run": report.to_dict()},
    )
    if report.ok and session.episodes:
        console.print(f"next: mtdit train --dataset {quote(str(out))}")
    live.leave(report)


@grouped
def replay(
    dataset: Annotated[Path, option("Data", "Folder of the LeRobotDataset.")],
    arm: ArmOptions,
    episode: Annotated[int, option("Data", "Number of the episode to replay, from 0.", min=0)] = 0,
    json_out: Json = None,
) -> None:
    """Replay a recorded episode's actions on an arm, and report how well it followed them."""
    from mtdit.cli.rig import open_rig
    from mtdit.cli.terminal import live, tables
    from mtdit_robots.twin.tasks import TASKS
    from mtdit_runtime.recording.dataset_reader import read_episode
    from mtdit_runtime.replay import replay as drive
    from mtdit_runtime.units import settled

    recorded = read_episode(dataset, episode)
    units = settled(recorded.units, arm.said_units, str(dataset))
    if arm.robot is RobotKind.so101:
        check_arm_units(units)  # before cameras are opened
    console.print(
        f"episode {episode}: {recorded.task!r}, {len(recorded.actions) / recorded.fps:.1f} s"
    )
    scene = recorded.task if recorded.task in TASKS else None
    with open_rig(arm, size=(64, 64), fps=recorded.fps, task=scene) as rig:
        options = _drive_options(arm, recorded.fps)
        report = drive(rig.robot, recorded, options, say=console.print)
    console.print(tables.errors_table("error to the action, one tick later", report.tracking))
    console.print(tables.errors_table("error to the recorded movement", report.recorded))
    console.print(tables.report_table(report.run))
    write_json(json_out, report.to_dict())
    live.leave(report.run)


def repair(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a LeRobotDataset.")],
) -> None:
    """Keep the whole episodes of a dataset whose recording was interrupted.

    Files that are replaced are moved into a folder beside the dataset; nothing is deleted.
    """
    from mtdit_runtime.recording.dataset_repair import repair as keep_whole

    for line in keep_whole(dataset).lines():
        console.print(line)


def _drive_options(arm: ArmOptions, fps: int, duration_s: float | None = None) -> DriveOptions:
    from mtdit_runtime.teleoperate import DriveOptions

    options = DriveOptions(fps, duration_s, arm.lockstep, arm.max_speed, arm.home_s)
    return replace(options, units=arm.said_units)
