"""The simulated arm and table, in this process: physics, servos, layout and images.

`server` puts a bus in front of it; data generation and the expert use it directly. Both command it
through the same servo registers, so a position has the same meaning in both. The result depends
only on (task, seed, commands): there is no clock and no hidden randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.so101 import calibration as calibrations
from mtdit_robots.so101.joints import JOINTS, Ranges
from mtdit_robots.timing import TICK_HZ, physics_steps
from mtdit_robots.twin import chain, servo_model
from mtdit_robots.twin.layout import Layout, draw_layout
from mtdit_robots.twin.render import Renderer, load_mujoco, make_renderer
from mtdit_robots.twin.scene import LARGEST_PICTURE, build_mjcf
from mtdit_robots.twin.servos import Servos
from mtdit_robots.twin.waypoints import Plan


@dataclass(frozen=True)
class Task:
    """One task.

    name: the instruction for the policy. drawer_range_m: lowest and highest opening of the drawer
    at the start. done: whether the task is done in the present state of the world. plan: the
    expert's way-points for the present state.
    """

    name: str
    drawer_range_m: tuple[float, float]
    done: Callable[[World], bool]
    plan: Callable[[World], Plan]


CAMERAS = ("top", "wrist")  # what a policy sees
OVERVIEW = "overview"  # for people
SETTLE_STEPS = 60
COARSE, FINE = False, True


class World:
    """One arm at one table. Starts as after `reset(first task, seed 0)`, with torque off.

    fps: ticks per second. UserError when mujoco is not installed.
    """

    def __init__(self, task: Task, fps: float = TICK_HZ) -> None:
        self._mujoco = load_mujoco()
        self.substeps = physics_steps(fps)
        self.substep_s = 1 / fps / self.substeps
        self.model = self._mujoco.MjModel.from_xml_string(build_mjcf())
        self.model.opt.timestep = self.substep_s
        self.data = self._mujoco.MjData(self.model)
        self._scratch, self._torques = self._mujoco.MjData(self.model), np.zeros(self.model.nv)
        self.servos = Servos(self.model, self.data)
        self.registers = chain.twin_registers()
        self.calibration = chain.twin_calibration()
        self._ranges: Ranges = calibrations.ranges(self.calibration)
        self._renderers: dict[bool, Renderer] = {}
        self._fine: tuple[Any, Any] | None = None
        self.tick = 0
        self.reset(task, 0)

    # Episodes

    def reset(self, task: Task, seed: int) -> None:
        """Reset the scene for the instruction and put the arm in its rest pose. UserError for an
        unknown instruction.

        The servos keep their settings (gains, torque); their goals are set to the new pose. An arm
        without torque is held there until torque comes on; otherwise it would fall onto the
        objects.
        """
        self.task = task
        self.seed = seed
        layout = draw_layout(seed, self.task.drawer_range_m)
        self._place(layout)
        self._held_rad: NDArray[np.float64] | None = layout.arm_rad
        for _ in range(SETTLE_STEPS):
            self.step_substep()
        self.tick = 0
        self.servos.cool_down()
        self.report()
        chain.set_goals(self.registers, self._present_ticks())
        self.carry_out()
        self.data.time = 0.0
        self._mujoco.mj_forward(self.model, self.data)
        self.start = {name: self.position(name) for name in ("cube", "bowl")}

    def success(self) -> bool:
        """Whether the task is done right now."""
        return self.task.done(self)

    def energise(self) -> None:
        """Torque on, with the gains the driver sets. Only for worlds without a bus."""
        chain.energise(self.registers)

    # Time

    def step_tick(self) -> None:
        """Simulate one control period with the present goals."""
        self.carry_out()
        for _ in range(self.substeps):
            self.step_substep()
        self.end_tick()

    def carry_out(self) -> None:
        """Apply goals and settings of the registers to the physics."""
        chain.carry_out(self.registers, self.servos)
        if self.servos.torque_enabled.any():
            self._held_rad = None

    def step_substep(self) -> None:
        """At most 1/240 s of physics."""
        self.servos.slew()
        self._mujoco.mj_step(self.model, self.data)
        if self._held_rad is not None:
            self.servos.hold_still(self._held_rad)

    def end_tick(self) -> None:
        """Count the tick and update temperatures, registers, protections and what is drawn."""
        self.tick += 1
        self.servos.warm(self.substep_s * self.substeps)
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)
        self.report()
        for servo in self.registers.values():
            servo.protect(self.substep_s * self.substeps)

    def report(self) -> None:
        """Update the servos' present registers."""
        chain.report(self.servos, self.registers)

    # The arm, in the driver's units

    def positions(self) -> NDArray[np.float64]:
        """(6,) degrees, gripper 0..100, rounded to whole ticks as the driver would read them."""
        return self._ranges.positions(self._present_ticks())

    def command(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Set goals (6,) in the driver's units, with the driver's conversion and limits. Returns
        the goals after the limits.
        """
        ranges = self._ranges
        bounds = ranges.positions(ranges.low), ranges.positions(ranges.high)
        sent: NDArray[np.float64] = np.clip(positions, *bounds)
        chain.set_goals(self.registers, np.clip(ranges.ticks(sent), ranges.low, ranges.high))
        return sent

    def positions_of(self, angles_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint angles (6,) rad in the driver's units, not rounded to ticks."""
        homing = np.array([self.calibration[joint].homing_offset for joint in JOINTS])
        return self._ranges.positions(servo_model.ticks_of(angles_rad) - homing)

    def gravity_nm(self, angles_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """Torque (6,) that holds the arm still at angles (6,)."""
        self._scratch.qpos[:6] = angles_rad
        self._mujoco.mj_kinematics(self.model, self._scratch)
        self._mujoco.mj_comPos(self.model, self._scratch)
        self._mujoco.mj_rne(self.model, self._scratch, 0, self._torques)
        return self._torques[:6].copy()

    def _present_ticks(self) -> NDArray[np.int64]:
        return np.array([servo.get("Present_Position") for servo in self.registers.values()])

    # The table; metres and radians, world frame

    def position(self, body: str) -> NDArray[np.float64]:
        """(3,) of "cube", "bowl", "cabinet"."""
        return self.data.body(body).xpos.copy()

    def yaw(self, body: str) -> float:
        """Rotation of the body about the vertical, in radians."""
        return math.atan2(self.data.body(body).xmat[3], self.data.body(body).xmat[0])

    def handle(self) -> NDArray[np.float64]:
        """(3,) position of the middle of the drawer's handle."""
        return self.data.site("handle").xpos.copy()

    def drawer_m(self) -> float:
        """How far the drawer is open."""
        return float(self.data.joint("drawer").qpos[0])

    def _place(self, layout: Layout) -> None:
        self._mujoco.mj_resetData(self.model, self.data)
        x, y, yaw = layout.cabinet
        cabinet = self.model.body("cabinet").id
        self.model.body_pos[cabinet] = (x, y, 0)
        self.model.body_quat[cabinet] = _turn(yaw)
        self._put("cube", layout.cube)
        self._put("bowl", layout.bowl)
        self.data.joint("drawer").qpos[0] = layout.drawer_m
        self.servos.hold_still(layout.arm_rad)

    def _put(self, body: str, place: tuple[float, float, float]) -> None:
        joint = self.model.body(body).jntadr[0]
        start = self.model.jnt_qposadr[joint]
        height = self.model.body(body).pos[2]
        self.data.qpos[start : start + 7] = (place[0], place[1], height, *_turn(place[2]))

    # Images

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """The image a policy sees: (height, width, 3) uint8 RGB. camera: "top", "wrist" or
        "overview".

        UserError for another camera, and for a size that cannot be rendered.
        """
        _check_view(camera, height, width)
        if COARSE not in self._renderers:
            self._renderers[COARSE] = make_renderer(self.model)
        return self._renderers[COARSE].render(self.data, camera, height, width)

    def picture(
        self, camera: str = OVERVIEW, height: int = 480, width: int = 640
    ) -> NDArray[np.uint8]:
        """The same as `render`, with shadows and smooth edges for people; 10 times slower."""
        _check_view(camera, height, width)
        if self._fine is None:
            model = self._mujoco.MjModel.from_xml_string(build_mjcf(fine=True))
            self._fine = model, self._mujoco.MjData(model)
            self._renderers[FINE] = make_renderer(model)
        model, data = self._fine
        model.body_pos[:], model.body_quat[:] = self.model.body_pos, self.model.body_quat
        data.qpos[:] = self.data.qpos
        self._mujoco.mj_forward(model, data)
        return self._renderers[FINE].render(data, camera, height, width)

    def close(self) -> None:
        """Free the GL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._fine = None


def _check_view(camera: str, height: int, width: int) -> None:
    if camera not in (*CAMERAS, OVERVIEW):
        raise UserError(
            f"the twin has no camera {camera!r}: use one of {', '.join((*CAMERAS, OVERVIEW))}"
        )
    if not (0 < height <= LARGEST_PICTURE[0] and 0 < width <= LARGEST_PICTURE[1]):
        raise UserError(
            f"an image of {width}x{height} cannot be rendered: "
            f"the largest size is {LARGEST_PICTURE[1]}x{LARGEST_PICTURE[0]}"
        )


def _turn(yaw: float) -> tuple[float, float, float, float]:
    return math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)
