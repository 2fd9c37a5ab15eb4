"""A policy in a robot's order of joints. Values move between the two by name, never by place.

A dataset may name the joints of state and action in different orders, and a robot in a third one.
Every loop that lets a policy drive a robot asks `on_robot` for the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.robot import Frame, Positions
from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.joint_order import Named, listed, permutation, places
from mtdit_runtime.policy.policy import Chunk, Noise, Policy
from mtdit_runtime.timings import Timings

FIX = (
    "use the arm that the policy was trained on; a checkpoint of LeRobot names no joints, add "
    "--dataset with its dataset to `mtdit export` or `mtdit eval`"
)


def on_robot(policy: Policy, joints: Sequence[str], whose: str = "the robot") -> Policy:
    """The policy with positions and actions in the order of `joints`.

    whose: what a message calls the owner of `joints`. UserError with both lists unless the policy
    moves exactly these joints and sees no others.
    """
    order = tuple(joints)
    if policy.joints == policy.state_joints == order:
        return policy
    return _ByName(policy, Named(whose, order))


def check_cameras(policy: Policy, cameras: Sequence[str]) -> None:
    """UserError unless all cameras of the policy are among the robot's; their order is free."""
    missing = [name for name in policy.cameras if name not in cameras]
    if missing:
        raise UserError(
            f"the policy needs camera {missing[0]!r}, the robot has {listed(cameras)}: "
            "add it or rename a camera"
        )


class _ByName(Policy):
    """Another policy, with positions and actions in a robot's order.

    Noise stays in the policy's own order: it belongs to its numbers, not to joints.
    """

    def __init__(self, policy: Policy, robot: Named) -> None:
        actions, state = (
            Named("the policy's action", policy.joints),
            Named("the policy's state", policy.state_joints),
        )
        self._policy, self._joints = policy, robot.joints
        self._sent = permutation(robot, actions, FIX)  # place of each robot joint in an action
        self._committed = places(actions, robot, FIX)
        self._seen = places(state, robot, FIX)  # place of each state joint on the robot

    @property
    def joints(self) -> tuple[str, ...]:
        return self._joints

    @property
    def cameras(self) -> tuple[str, ...]:
        return self._policy.cameras

    @property
    def frame_sizes(self) -> Mapping[str, tuple[int, int]]:
        return self._policy.frame_sizes

    @property
    def n_obs_steps(self) -> int:
        return self._policy.n_obs_steps

    @property
    def horizon(self) -> int:
        return self._policy.horizon

    @property
    def n_action_steps(self) -> int:
        return self._policy.n_action_steps

    @property
    def fps(self) -> int:
        return self._policy.fps

    @property
    def units(self) -> str:
        return self._policy.units

    @property
    def demonstrated(self) -> tuple[Joint, ...]:
        return self._policy.demonstrated

    @property
    def timings(self) -> Timings:
        return self._policy.timings

    def reset(self, task: str, seed: int) -> None:
        self._policy.reset(task, seed)

    def observe(self, positions: Positions, frames: Mapping[str, Frame]) -> None:
        self._policy.observe(np.asarray(positions)[self._seen], frames)

    def chunk(self, noise: Noise | None = None, committed: Positions | None = None) -> Chunk:
        return self.request(noise, committed)()

    def request(
        self, noise: Noise | None = None, committed: Positions | None = None
    ) -> Callable[[], Chunk]:
        held = None if committed is None else np.asarray(committed)[:, self._committed]
        compute = self._policy.request(noise, held)
        return lambda: compute()[:, self._sent]

    def prepare(self) -> Callable[[], None]:
        return self._policy.prepare()
