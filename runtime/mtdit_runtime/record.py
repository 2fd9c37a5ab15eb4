"""Records demonstrations: a leader arm drives the robot, and a session cuts what it does into
episodes of a LeRobotDataset v3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mtdit_robots.signals import graceful_exit
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.units import DEGREES, check_arm_units
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import SafetyConfig
from mtdit_runtime.instructions import typed
from mtdit_runtime.recording.dataset_layout import DatasetLayout
from mtdit_runtime.recording.dataset_reader import read_dataset
from mtdit_runtime.recording.dataset_resume import has_episodes
from mtdit_runtime.recording.dataset_units import dataset_units
from mtdit_runtime.recording.dataset_writer import DatasetWriter
from mtdit_runtime.recording.session import Session, SessionConfig, SessionStats
from mtdit_runtime.teleoperate import BY_HAND, MAX_SPEED, DriveOptions, Leader, teleoperate
from mtdit_runtime.units import settled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordOptions:
    """What to record, and how to drive the arm meanwhile."""

    episodes: int = 50  # to save in this session
    episode_s: float = 60.0  # an episode ends after this time; a key ends it earlier
    reset_s: float = 60.0  # pause between episodes to reset the scene
    fps: int = 30  # control ticks and frames per second
    resume: bool = False  # add to the dataset that is there
    video: bool = True  # False: PNG images in the tables, lossless and 20 times larger
    codec: str = "h264"  # or av1, LeRobot's default
    lockstep: bool = False  # use the twin's lock-step clock
    max_speed: float = MAX_SPEED  # degrees or percent per second
    # Seconds for the return to the start pose; 0: the arm stays where it is and loses torque there.
    home_s: float = 3.0
    safety: SafetyConfig = field(default_factory=lambda: BY_HAND)
    # Unit of the body joints, "degrees" or "normalized"; None: that of the dataset, or degrees
    units: str | None = None

    def session(self, task: str) -> SessionConfig:
        """The session. UserError for a task that is empty or has control characters, and for
        episodes too short to be saved.
        """
        config = SessionConfig(typed(task), self.episodes, self.episode_s, self.reset_s)
        config.check(self.fps)
        return config


def record(
    robot: So101Arm,
    leader: Leader,
    out: Path | str,
    task: str,
    options: RecordOptions = RecordOptions(),
    *,
    keys: Callable[[], str | None] | None = None,
    status: Callable[[Tick, str], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[RunReport, SessionStats]:
    """Record demonstrations of `task` with all cameras of the robot, into the folder `out`.

    Neither arm is connected yet; both are closed in the end. keys: called once per tick, the name
    of the key pressed since the last call (see `session.KEYS`). status: called after each command
    with the tick and a line on the session. say: called with each message for the user.

    Raises UserError for what the user must fix; every other failure is the reason in the report.
    Episodes that were finished are saved in any case.
    """
    with graceful_exit(), closing(robot), closing(leader):
        config, root = options.session(task), Path(out)
        units = recording_units(root, options.resume, options.units)
        robot.use_units(units)
        sizes = robot.frame_sizes
        layout = DatasetLayout(options.fps, robot.joints, sizes, options.video, units=units)
        dataset = DatasetWriter(root, layout, options.resume, options.codec, wait=options.lockstep)
        session = Session(dataset, config, keys or (lambda: None), say)

        def on_tick(tick: Tick) -> None:
            if status is not None:
                status(tick, session.status())
            session(tick)

        drive = DriveOptions(
            fps=options.fps,
            lockstep=options.lockstep,
            max_speed=options.max_speed,
            home_s=options.home_s,
            safety=options.safety,
            units=units,
        )
        try:
            report = teleoperate(
                robot, leader, drive, cameras=robot.cameras, on_tick=on_tick, say=say
            )
        finally:
            session.close()
            result, *problems = session.stats.lines(root)
            (say or log.info)(result)
            for problem in problems:
                (say or log.warning)(problem)
    return report, session.stats


def recording_units(root: Path, resume: bool, said: str | None) -> str:
    """The unit in which to record into `root`: that of the dataset to which episodes are added,
    else `said`, else degrees. UserError when they differ, or nobody knows the dataset's.
    """
    if not resume or not has_episodes(root):
        return check_arm_units(DEGREES if said is None else said)
    return check_arm_units(settled(dataset_units(read_dataset(root)), said, str(root)))
