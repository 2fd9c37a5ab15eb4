"""Six STS3215 servos that drive the model's position actuators, in joint order and SI units.

Settings (gain, torque limit, torque switch, goal) become actuator gains and a set-point with
limited speed. Registers are left to `chain`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.twin import servo_model
from mtdit_robots.twin.arm_figures import RANGES_RAD

FOLLOWER_P = 16.0  # LeRobot's P_Coefficient for the follower
GRIPPER_TORQUE = 0.5  # LeRobot's Max_Torque_Limit for the gripper, as a fraction

Vector = NDArray[np.float64]  # (6,)


class Servos:
    """The physics of the six servos.

    Settings are arrays (6,) in joint order: goal_rad, p_coefficient, torque_limit (0..1) and
    torque_enabled. Change them, then call `apply_settings`. temperature_c (6,) is that of the
    windings.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data
        joints = [model.joint(name) for name in RANGES_RAD]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._qvel = np.array([joint.dofadr[0] for joint in joints])
        self.goal_rad: Vector = np.zeros(6)
        self.p_coefficient: Vector = np.full(6, FOLLOWER_P)
        self.torque_limit: Vector = np.array([1, 1, 1, 1, 1, GRIPPER_TORQUE])
        self.torque_enabled: NDArray[np.bool_] = np.ones(6, bool)
        self.temperature_c: Vector = np.full(6, servo_model.ROOM_C)
        self.apply_settings()

    @property
    def angles_rad(self) -> Vector:
        return self._data.qpos[self._qpos].copy()

    @property
    def velocities_rad_s(self) -> Vector:
        return self._data.qvel[self._qvel].copy()

    @property
    def torques_nm(self) -> Vector:
        """Stall torque at the applied duty cycle; zero while torque is off."""
        return self._data.actuator_force.copy()

    @property
    def load(self) -> Vector:
        """Signed fraction of the full duty cycle, as Present_Load reports it."""
        return np.asarray(self.torques_nm / servo_model.STALL_NM * servo_model.MAX_DUTY)

    @property
    def currents_a(self) -> Vector:
        return np.where(
            self.torque_enabled, servo_model.current_a(self.torques_nm, self.velocities_rad_s), 0.0
        )

    def hold_still(self, angles_rad: Vector) -> None:
        """Set the joints to these angles at zero velocity, with goals and set-points there too."""
        self._data.qpos[self._qpos] = angles_rad
        self._data.qvel[self._qvel] = 0
        self._data.ctrl[:] = angles_rad
        self.goal_rad = np.array(angles_rad, dtype=float)

    def apply_settings(self) -> None:
        """Copy gains, limits and switches to the model."""
        stiffness = servo_model.stiffness_nm_rad(1.0) * self.p_coefficient * self.torque_enabled
        self._model.actuator_gainprm[:, 0] = stiffness
        self._model.actuator_biasprm[:, 1] = -stiffness
        limit = servo_model.STALL_NM * self.torque_limit
        self._model.actuator_forcerange[:] = np.stack([-limit, limit], axis=1)

    def slew(self) -> None:
        """Move every set-point towards its goal for one physics step, at most at the firmware's
        speed. While torque is off, the set-point follows the joint.
        """
        step = servo_model.SLEW_RAD_S * self._model.opt.timestep
        moved = self._data.ctrl + np.clip(self.goal_rad - self._data.ctrl, -step, step)
        self._data.ctrl[:] = np.where(self.torque_enabled, moved, self._data.qpos[self._qpos])

    def cool_down(self) -> None:
        """Set the windings to room temperature."""
        self.temperature_c = np.full(6, servo_model.ROOM_C)

    def warm(self, seconds: float) -> None:
        """Heat the windings by `seconds` of copper loss at the present currents."""
        self.temperature_c = servo_model.warmed_c(self.temperature_c, self.currents_a, seconds)
