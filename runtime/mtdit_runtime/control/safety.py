"""The guards that every command passes on its way to the robot.

They limit range and speed, ramp up from the start pose, hold the arm while frames are stale, and
end the run when a joint does not follow its command. Every change of a command is counted per
joint. The class is pure: it reads no clock, no bus and no policy; its caller passes the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mtdit_robots.robot import Positions
from mtdit_robots.units import GRIPPER, PERCENT
from mtdit_runtime.bundle.manifest import Joint
from mtdit_runtime.control.start import TrainedRange
from mtdit_runtime.joint_order import Named, permutation

GUARDS = ("not finite", "range", "speed")


class Stop(Exception):  # noqa: N818, most runs do not end with an error
    """Ends the run. `reason` is the one in `RunReport`, `detail` a line for the user."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class SafetyConfig:
    """The settings of the guards, in degrees also for joints in other units."""

    range_margin: float = 0.1  # added on either side, as a part of the joint's range in training
    min_margin: float = 5.0  # degrees or percent, for joints that hardly moved in training
    speed_factor: float = 1.5  # on the fastest speed in training, which is a percentile
    min_speed: float = 20.0  # degrees or percent per second, for joints that hardly moved
    ramp_s: float = 0.5  # from the start pose to the policy's actions
    stale_hold_s: float = 0.2  # hold while a frame is older: six frames, a short fault of USB
    stale_end_s: float = 2.0  # end the run when frames stay stale for longer
    tracking_error: float = 25.0  # degrees; a free arm lags by up to 15 in fast motion
    tracking_end_s: float = 1.0  # end the run when a joint is off by more for longer
    not_finite_end_s: float = 0.5  # end the run when actions are NaN or infinite for longer
    max_speed: float = np.inf  # degrees or percent per second, a cap for every joint


@dataclass(frozen=True)
class Limits:
    """The limits of commands, per joint, in joint order."""

    low: NDArray[np.float64]  # (J,) in the joint's unit
    high: NDArray[np.float64]
    max_step: NDArray[np.float64]  # (J,) largest change per tick
    tracked: NDArray[np.bool_]  # (J,) False for a gripper: it may be blocked by what it holds
    # (J,) or (1,): units in a degree, by which the numbers of SafetyConfig are multiplied
    per_degree: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    # (J,) or (1,): units per second, the fastest of the demonstrations; infinite: not known
    fastest: NDArray[np.float64] = field(default_factory=lambda: np.full(1, np.inf))
    # (J,) or (1,): `max_step` is a person's cap, below what the demonstrations allow
    capped: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, bool))

    @classmethod
    def of(
        cls,
        joints: Sequence[Joint],
        fps: float,
        config: SafetyConfig,
        per_degree: ArrayLike = 1.0,
    ) -> Limits:
        """The ranges and speeds of the training data, widened by the margins in `config`.

        per_degree: (J,), how many of the joint's units a degree is.
        """
        scale = np.broadcast_to(np.asarray(per_degree, np.float64), len(joints))
        low, high, speed = (
            np.array([getattr(j, name) for j in joints]) for name in ("low", "high", "max_speed")
        )
        margin = np.maximum(config.range_margin * (high - low), config.min_margin * scale)
        slowest, cap = config.min_speed * scale, config.max_speed * scale
        allowed = np.maximum(speed * config.speed_factor, slowest)
        max_step = np.minimum(allowed, cap) / fps
        tracked = np.array([j.unit != PERCENT and j.name != GRIPPER for j in joints])
        fastest = np.maximum(speed, slowest)
        return cls(low - margin, high + margin, max_step, tracked, scale, fastest, cap < allowed)

    @classmethod
    def by_name(
        cls,
        robot: Sequence[str],
        joints: Sequence[Joint],
        fps: float,
        config: SafetyConfig,
        per_degree: ArrayLike = 1.0,
    ) -> Limits:
        """The limits of the policy's `joints` in the order of the robot's. UserError with both
        lists when they are not the same joints.

        per_degree: as for `of`, in the robot's order.
        """
        named = Named("the policy", tuple(joint.name for joint in joints))
        order = permutation(Named("the robot", tuple(robot)), named, "use the arm it is for")
        return cls.of([joints[i] for i in order], fps, config, per_degree)

    @classmethod
    def none(cls, n_joints: int) -> Limits:
        """No limits and no tracking check: for evaluating a policy in simulation."""
        far = np.full(n_joints, np.inf)
        return cls(-far, far, far, np.zeros(n_joints, bool))


class Safety:
    """The guards of one run.

    Call `begin` once; then in every tick `frames_fresh`, `command` or `hold`, and `accepted`.
    interventions: guard -> (J,) ticks in which it changed a command. applied: False only counts
    what range and speed guard would change, and follows the policy, for simulation.
    """

    def __init__(
        self,
        joints: Sequence[str],
        limits: Limits,
        config: SafetyConfig | None = None,
        trained: TrainedRange | None = None,
        applied: bool = True,
    ) -> None:
        self.joints, self.limits, self.config = tuple(joints), limits, config or SafetyConfig()
        self.interventions = {guard: np.zeros(len(self.joints), np.int64) for guard in GUARDS}
        self.stale_ticks, self._trained, self.applied = 0, trained, applied
        self.begin(np.zeros(len(self.joints)))

    def check_start(self, positions: Positions) -> None:
        """UserError when the arm was found, at (J,), far outside what the policy was trained on."""
        if self._trained is not None:
            self._trained.check(self.joints, positions)

    def begin(self, positions: Positions) -> None:
        """Start from this pose, (J,). The ramp starts with the first command."""
        self._start = positions.copy()
        self._ramp_from_s: float | None = None
        self._last = positions.copy()  # the last accepted command; at first the measured pose
        self._limited = positions.copy()  # the same with guards, whether or not they are applied
        self._stale, self._not_finite = _Lasting(), _Lasting()
        self._off_track = [_Lasting() for _ in self.joints]

    @property
    def last(self) -> Positions:
        """(J,) the last command the robot accepted."""
        return self._last

    def frames_fresh(self, ages_s: Mapping[str, float], now_s: float) -> bool:
        """Whether the policy may act in this tick. ages_s: camera -> age of its frame.

        Raises Stop("stale camera") when a camera has given no new frame for too long.
        """
        camera = max(ages_s, key=ages_s.__getitem__, default="")
        stale = bool(ages_s) and ages_s[camera] > self.config.stale_hold_s
        self._stale.update(stale, now_s)
        self.stale_ticks += stale
        if stale and max(self._stale.for_s, ages_s[camera]) > self.config.stale_end_s:
            raise Stop(
                "stale camera",
                f"{camera!r} gave no new frame for {ages_s[camera]:.1f} s: check its cable",
            )
        return not stale

    def command(self, wanted: Positions, measured: Positions, now_s: float) -> Positions:
        """Turn the policy's action (J,) into a command (J,) within the limits.

        Raises Stop("blocked"), and Stop("policy error") when actions stay NaN or infinite.
        """
        self.check_tracking(measured, now_s)
        if not self._is_finite(wanted, now_s):
            return self._last.copy()
        ramped = self._start + self._ramp(now_s) * (wanted - self._start)
        in_range = self._limit("range", ramped, self.limits.low, self.limits.high)
        step = self.limits.max_step
        self._limited = self._limit("speed", in_range, self._limited - step, self._limited + step)
        return self._limited.copy() if self.applied else ramped

    def hold(self, measured: Positions, now_s: float) -> Positions:
        """The last command again, (J,). Raises Stop("blocked")."""
        self.check_tracking(measured, now_s)
        return self._last.copy()

    def accepted(self, sent: Positions) -> None:
        """Note the command (J,) that the robot accepted; the next step is measured from it."""
        self._last = sent.copy()
        if self.applied:
            self._limited = sent.copy()

    def check_tracking(self, measured: Positions, now_s: float) -> None:
        """Raises Stop("blocked") when a joint stays far from its command."""
        if not self.applied:
            return
        allowed = self.config.tracking_error * self.limits.per_degree
        off = (np.abs(self._last - measured) > allowed) & self.limits.tracked
        for i, lasting in enumerate(self._off_track):
            lasting.update(bool(off[i]), now_s)
            if lasting.for_s > self.config.tracking_end_s:
                raise Stop(
                    "blocked",
                    f"{self.joints[i]} is at {measured[i]:.0f} but was commanded to "
                    f"{self._last[i]:.0f} for {lasting.for_s:.1f} s: "
                    "check for an obstacle or weak power",
                )

    def _ramp(self, now_s: float) -> float:
        if self._ramp_from_s is None:
            self._ramp_from_s = now_s
        elapsed_s = now_s - self._ramp_from_s
        return 1.0 if elapsed_s >= self.config.ramp_s else elapsed_s / self.config.ramp_s

    def _is_finite(self, wanted: Positions, now_s: float) -> bool:
        bad = ~np.isfinite(wanted)
        self._not_finite.update(bool(bad.any()), now_s)
        self.interventions["not finite"] += bad
        if self._not_finite.for_s > self.config.not_finite_end_s:
            raise Stop(
                "policy error",
                f"the action of {self.joints[int(bad.argmax())]} is not a finite number",
            )
        return not bad.any()

    def _limit(self, guard: str, wanted: Positions, low: Positions, high: Positions) -> Positions:
        limited = np.clip(wanted, low, high)
        self.interventions[guard] += np.abs(limited - wanted) > 1e-9
        return limited


class _Lasting:
    """Measures for how long a condition has been true without a break."""

    def __init__(self) -> None:
        self.for_s = 0.0
        self._since_s: float | None = None

    def update(self, is_true: bool, now_s: float) -> None:
        if not is_true:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        self.for_s = 0.0 if self._since_s is None else now_s - self._since_s
