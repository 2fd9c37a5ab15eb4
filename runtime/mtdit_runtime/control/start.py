"""Whether an arm starts near the poses that a policy has seen.

In a pose far from all demonstrations a policy's actions are arbitrary; most often the arm is not
where its numbers say: another calibration, another unit, a sign that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.features import STATE
from mtdit_robots.robot import Positions
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.text import printable

# A wrong zero or sign is off by 90 degrees and more. A sound arm that rests folded is up to about
# 50 degrees outside demonstrations that begin with the arm raised.
MARGIN = 60.0  # degrees or percent, or half the range in training if that is more
DEVIATIONS = 3.0  # of MEAN_STD, which keeps no range: a range of three standard deviations


@dataclass(frozen=True)
class TrainedRange:
    """The state range seen in training. ends: joint -> (lowest, highest); margins: joint -> how far
    beyond them an arm may start. All in the joints' units.
    """

    ends: Mapping[str, tuple[float, float]]
    margins: Mapping[str, float]

    @classmethod
    def of(cls, bundle: Bundle, robot: Sequence[str], per_degree: Positions) -> TrainedRange:
        """From a bundle's statistics; from its actions' range where the states have none.

        per_degree: how many units a degree is, for each joint of the robot, in its order.
        """
        m = bundle.manifest
        ends = {joint.name: (joint.low, joint.high) for joint in m.joints}
        found = bundle.stats.get(STATE)
        if found is not None and found.mode != "IDENTITY":
            low, high = found.low, found.high
            if found.mode == "MEAN_STD":
                low, high = low - DEVIATIONS * high, low + DEVIATIONS * high
            seen = zip(m.state_joints, low, high, strict=True)
            ends |= {name: (float(a), float(b)) for name, a, b in seen}
        scale = dict(zip(robot, per_degree, strict=True))
        margins = {
            name: max(MARGIN * float(scale.get(name, 1.0)), (high - low) / 2)
            for name, (low, high) in ends.items()
        }
        return cls(ends, margins)

    def check(self, joints: Sequence[str], positions: Positions) -> None:
        """UserError with the joint that is farthest outside, its value and the range in training.

        positions: (J,) in the order of `joints`.
        """
        excess = {
            joint: max(low - value, value - high) - self.margins[joint]
            for joint, value in zip(joints, positions.tolist(), strict=True)
            for low, high in [self.ends.get(joint, (-np.inf, np.inf))]
            if joint in self.ends
        }
        joint = max(excess, key=excess.__getitem__, default="")
        if joint and excess[joint] > 0:
            low, high = self.ends[joint]
            value = positions.tolist()[list(joints).index(joint)]
            raise UserError(
                f"{printable(joint)} is at {value:.1f}, but in training it was between {low:.1f} "
                f"and {high:.1f}: move the arm by hand to a pose of the demonstrations and start "
                "again; if it is in one, its calibration or its unit is not that of the training "
                "data, see `mtdit doctor --bundle`"
            )
