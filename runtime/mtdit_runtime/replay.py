"""Replays a recorded episode on an arm and measures how well the arm followed.

The arm moves to the first action of the episode on a ramp, waits there for SETTLE_S, then plays the
actions. Every command passes the guards of `safety`. The caller finds the arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_robots.so101.arm import So101Arm
from mtdit_runtime.control.loop import Action, ActionSource
from mtdit_runtime.control.report import RunReport, Tick
from mtdit_runtime.control.safety import Stop
from mtdit_runtime.joint_order import Named, permutation
from mtdit_runtime.recording.dataset_reader import RecordedEpisode
from mtdit_runtime.teleoperate import DriveOptions, Say, drive
from mtdit_runtime.units import settled

SETTLE_S = 0.5  # at the first action, after the ramp


class EpisodeSource(ActionSource):
    """The first action of the episode for `lead_in_ticks`, then all actions, then the end.

    An action's row is its number in the episode; during the lead-in it is negative.
    """

    def __init__(self, episode: RecordedEpisode, lead_in_ticks: int) -> None:
        self._row, self._actions = -lead_in_ticks - 1, episode.actions

    def step(self, positions: Positions, frames: Mapping[str, Frame]) -> Action:
        if self._row + 1 >= len(self._actions):
            raise Stop("duration")
        self._row += 1
        return Action(np.array(self._actions[max(self._row, 0)]), row=self._row)


@dataclass(frozen=True)
class ReplayReport:
    """Errors in the recording's unit as joint -> {mean, max}, and the report of the run.

    tracking: position one tick after an action, minus that action. recorded: position minus the
    position in the recording at the same frame, for the joints of its state; 0 means the same
    movement. limited: action sent
    minus recorded action, which shows what the guards changed.
    """

    ticks: int
    tracking: dict[str, dict[str, float]]
    recorded: dict[str, dict[str, float]]
    limited: dict[str, dict[str, float]]
    run: RunReport

    def to_dict(self) -> dict[str, Any]:
        return {**{k: v for k, v in vars(self).items() if k != "run"}, "run": self.run.to_dict()}


class _Trace:
    """An `on_tick` that keeps row, position and command of every played tick."""

    def __init__(self) -> None:
        self.rows, self.positions, self.sent = list[int](), list[Positions](), list[Positions]()

    def __call__(self, tick: Tick) -> None:
        if tick.row >= 0:
            self.rows.append(tick.row)
            self.positions.append(tick.observation.positions)
            self.sent.append(tick.sent)


def replay(
    robot: So101Arm,
    episode: RecordedEpisode,
    options: DriveOptions | None = None,
    *,
    say: Say | None = None,
) -> ReplayReport:
    """Play the actions of a recorded episode on an arm, and measure how well the arm follows.

    The robot is not connected yet; it is closed in the end. say: called with each message for the
    user. Actions and states are found by the names of their joints, whatever their order. UserError
    with both lists when the actions are not those of this arm's joints; when `options.fps` or
    `options.units` is not that of the recording; and when nobody knows its unit and the arm is
    real.

        episode = mtdit.read_episode("my-dataset", 0)
        report = mtdit.replay(arm, episode)
    """
    options = options or DriveOptions(fps=episode.fps)
    with closing(robot):
        episode = _in_order_of(robot, episode)
        _check_fps(episode, options)
        options = replace(options, units=settled(episode.units, options.units, "the recording"))
        lead_in = round((options.safety.ramp_s + SETTLE_S) * options.fps)
        trace = _Trace()
        report = drive(robot, EpisodeSource(episode, lead_in), options, on_tick=trace, say=say)
    return _report(episode, trace, report)


def _in_order_of(robot: So101Arm, episode: RecordedEpisode) -> RecordedEpisode:
    """The episode with its actions in the arm's order."""
    arm, fix = Named("this arm", robot.joints), "replay it on the kind of arm that recorded it"
    recorded = Named("the recording's action", episode.joints)
    order = permutation(arm, recorded, fix)
    return replace(episode, joints=robot.joints, actions=episode.actions[:, order])


def _check_fps(episode: RecordedEpisode, options: DriveOptions) -> None:
    if episode.fps != options.fps:
        raise UserError(
            f"fps is {options.fps}, but the recording was made at {episode.fps} Hz: "
            f"use {episode.fps}"
        )


def _report(episode: RecordedEpisode, trace: _Trace, report: RunReport) -> ReplayReport:
    rows = np.array(trace.rows, np.int64)
    positions, sent = np.array(trace.positions), np.array(trace.sent)  # (N, J)
    if not len(rows):
        return ReplayReport(0, {}, {}, {}, report)
    follows = np.flatnonzero(np.diff(rows) == 1)  # ticks whose next tick was not lost
    tracking = positions[follows + 1] - sent[follows]
    seen = [joint for joint in episode.joints if joint in episode.state_joints]
    on_arm, in_state = (
        [names.index(joint) for joint in seen] for names in (episode.joints, episode.state_joints)
    )
    return ReplayReport(
        len(rows),
        tracking=_errors(episode.joints, tracking),
        recorded=_errors(tuple(seen), positions[:, on_arm] - episode.states[rows][:, in_state]),
        limited=_errors(episode.joints, sent - episode.actions[rows]),
        run=report,
    )


def _errors(joints: tuple[str, ...], errors: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    sizes = np.abs(errors) if len(errors) else np.zeros((1, len(joints)))
    return {
        joint: {"mean": float(sizes[:, i].mean()), "max": float(sizes[:, i].max())}
        for i, joint in enumerate(joints)
    }
