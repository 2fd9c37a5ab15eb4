"""Every command passes through here on its way to the robot.

Knows limits, the start ramp, stale frames, and an arm that does not follow. Refuses to know
policies, buses and sleeping: a pure class that is told the time. What it changes it counts, per
joint; what it cannot mend ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.robot import Positions
from mtdit_runtime.bundle import Joint

GUARDS = ("not finite", "range", "speed")


class Stop(Exception):  # noqa: N818, most ends are no errors
    """The run is over. `reason` is one of the loop's end reasons, `detail` a line for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class SafetyConfig:
    range_margin: float = (
        0.1  # of a joint's range in training, on either side; corrections need some room
    )
    min_margin: float = 5.0  # degrees or percent, for joints that hardly moved in training
    speed_factor: float = 1.5  # over the training's fastest, which is a percentile already
    min_speed: float = 20.0  # degrees or percent per second: slow enough for any joint
    ramp_s: float = 0.5  # from the pose found to what the policy wants
    stale_hold_s: float = 0.2  # six frames: a hiccup of USB; acting on older frames is acting blind
    stale_end_s: float = 2.0
    tracking_error: float = 25.0  # degrees; a free arm lags by up to 15 in fast motion
    tracking_end_s: float = 1.0
    not_finite_end_s: float = 0.5  # half a second of nonsense is not a glitch
    max_speed: float = np.inf  # degrees or percent per second, a cap for every joint


@dataclass(frozen=True)
class Limits:
    """What commands are kept within, per joint, in joint order."""

    low: NDArray[np.float64]  # (J,) degrees, gripper 0..100
    high: NDArray[np.float64]
    max_step: NDArray[np.float64]  # (J,) per tick
    tracked: NDArray[
        np.bool_
    ]  # (J,) a gripper may close on an object, so it never counts as blocked

    @classmethod
    def of(cls, joints: Sequence[Joint], fps: float, config: SafetyConfig) -> Limits:
        """From the ranges and speeds of the demonstrations, widened by the config's margins."""
        low, high, speed = (
            np.array([getattr(j, name) for j in joints]) for name in ("low", "high", "max_speed")
        )
        margin = np.maximum(config.range_margin * (high - low), config.min_margin)
        speed = np.maximum(speed * config.speed_factor, config.min_speed)
        max_step = np.minimum(speed, config.max_speed) / fps
        return cls(
            low - margin, high + margin, max_step, np.array([j.unit == "degrees" for j in joints])
        )

    @classmethod
    def none(cls, n_joints: int) -> Limits:
        """No limits and no tracking: for measuring a policy as it is, in simulation."""
        far = np.full(n_joints, np.inf)
        return cls(-far, far, far, np.zeros(n_joints, bool))


class Safety:
    """The guards of one run. Call `begin`, then every tick `frames_fresh`, `command` or `hold`, and
    `accepted`.
    """

    def __init__(
        self, joints: Sequence[str], limits: Limits, config: SafetyConfig | None = None
    ) -> None:
        self.joints, self.limits, self.config = tuple(joints), limits, config or SafetyConfig()
        self.interventions = {
            guard: np.zeros(len(self.joints), np.int64) for guard in GUARDS
        }  # (J,) ticks
        self.stale_ticks = 0
        self.begin(np.zeros(len(self.joints)))

    def begin(self, positions: Positions) -> None:
        """Start from this pose. The ramp runs from the first command."""
        self._start = positions.copy()
        self._ramp_from_s: float | None = None
        self._last = positions.copy()  # what the robot was last told, or where it was found
        self._stale, self._not_finite = _Lasting(), _Lasting()
        self._off_track = [_Lasting() for _ in self.joints]

    @property
    def last(self) -> Positions:
        """(J,) the last command the robot accepted."""
        return self._last

    def frames_fresh(self, ages_s: Mapping[str, float], now_s: float) -> bool:
        """False: hold this tick. Raises Stop("stale camera") when a frame stays too old for too
        long.
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
        """The policy's action (J,) -> what may be sent (J,). Raises Stop: blocked, or never a
        finite number.
        """
        self.check_tracking(measured, now_s)
        if not self._is_finite(wanted, now_s):
            return self._last.copy()
        ramped = self._start + self._ramp(now_s) * (wanted - self._start)
        in_range = self._limit("range", ramped, self.limits.low, self.limits.high)
        step = self.limits.max_step
        return self._limit("speed", in_range, self._last - step, self._last + step)

    def hold(self, measured: Positions, now_s: float) -> Positions:
        """The last command once more (J,). Raises Stop("blocked")."""
        self.check_tracking(measured, now_s)
        return self._last.copy()

    def accepted(self, sent: Positions) -> None:
        """Tell what the robot really took; the next step is measured from there."""
        self._last = sent.copy()

    def check_tracking(self, measured: Positions, now_s: float) -> None:
        """Raises Stop("blocked") when a joint stays far from its command."""
        off = (np.abs(self._last - measured) > self.config.tracking_error) & self.limits.tracked
        for i, lasting in enumerate(self._off_track):
            lasting.update(bool(off[i]), now_s)
            if lasting.for_s > self.config.tracking_end_s:
                raise Stop(
                    "blocked",
                    f"{self.joints[i]} stands at {measured[i]:.0f} and was told {self._last[i]:.0f} for "
                    f"{lasting.for_s:.1f} s: clear its way, check its power",
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
    """How long something has been true without a break."""

    def __init__(self) -> None:
        self.for_s = 0.0
        self._since_s: float | None = None

    def update(self, is_true: bool, now_s: float) -> None:
        if not is_true:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        self.for_s = 0.0 if self._since_s is None else now_s - self._since_s
