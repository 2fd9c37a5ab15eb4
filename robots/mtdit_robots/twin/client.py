"""The twin from outside: start its process, open its port, read its cameras, reset its scene.

MuJoCo is never imported here; physics and rendering run in the twin's process. `robot()` is the
real driver on the twin's port and is unaware that the servos are simulated.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.so101.arm import So101Arm
from mtdit_robots.so101.calibration import JointCalibration
from mtdit_robots.timing import TICK_HZ
from mtdit_robots.twin.chain import twin_calibration
from mtdit_robots.twin.frames import Frame, SharedFrames, TwinCamera, new_memory
from mtdit_robots.twin.server import Control, Settings
from mtdit_robots.twin.world import CAMERAS, OVERVIEW

CLOCKS = ("real", "lockstep")
SLOWEST_HZ, FASTEST_HZ = 1, 200
START_TIMEOUT_S = 120.0  # the first start tries several renderers, which is slow on a busy computer
REPLY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
BUS_TIMEOUT_S = 0.5  # a busy computer delays the simulated servos
LOCKSTEP_BUS_TIMEOUT_S = 10.0  # replies wait for physics and rendering


class TwinArm(So101Arm):
    """The driver of the simulated arm, which nothing can harm."""

    @property
    def is_real(self) -> bool:
        return False


class Twin:
    """A simulated SO-101 in its own process. Use it as a context manager, or call `close`.

    clock: "real", or "lockstep" (one goal write is one tick of 1/fps s; deterministic and
    faster than real time). fps: ticks per second, and frames in real time: the rate of the
    policy. image_size: (height, width) of every camera. link: path of a symbolic link to
    the port, e.g. /tmp/ttySIM0. wire_time: let packets take as long as on a 1 Mbit/s wire.
    any_baud: answer clients at any baud rate; one under qemu-user cannot set the right one.

    Attributes: port (the serial device of the simulated bus), calibration, clock, image_size, and
    renderer (what draws the frames).

    UserError when the clock is unknown, mujoco is missing or the link cannot be created. OSError
    when the process does not start, and from every method when it has ended.

        with mtdit.Twin(clock="lockstep") as twin:
            report = mtdit.run("policy.mtdit", twin.robot(), "open the drawer")
    """

    def __init__(
        self,
        clock: str = "real",
        image_size: tuple[int, int] = (64, 64),
        link: str | Path | None = None,
        wire_time: bool = False,
        fps: float = TICK_HZ,
        any_baud: bool = False,
    ) -> None:
        if clock not in CLOCKS:
            raise UserError(f"the twin has no clock {clock!r}: use real or lockstep")
        if not SLOWEST_HZ <= fps <= FASTEST_HZ:
            raise UserError(
                f"the twin runs at {SLOWEST_HZ} to {FASTEST_HZ} Hz, not {fps:g}: give another fps"
            )
        self.clock, self.image_size, self.fps = clock, image_size, fps
        self.calibration: dict[str, JointCalibration] = twin_calibration()
        memory = new_memory()
        self._frames = SharedFrames(memory, CAMERAS, image_size)
        ours, theirs = socket.socketpair()
        settings = Settings(
            theirs.fileno(), memory, clock, image_size, str(link) if link else None, wire_time, fps,
            any_baud,
        )  # fmt: skip
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (stderr of the process)
        self._process = _start(settings, self._errors)
        theirs.close()
        os.close(memory)
        ours.settimeout(START_TIMEOUT_S)
        self._control = Control(ours)
        try:
            hello = self._reply()
        except BaseException:
            self.close()
            raise
        ours.settimeout(REPLY_TIMEOUT_S)
        self.port: str = hello["port"]
        self.renderer: str = hello["renderer"]["name"]

    def robot(self, bus: str = "own", names: Mapping[str, str] | None = None) -> So101Arm:
        """The driver on the twin's port, with the twin's cameras, not connected yet.

        After closing it, make a new one. bus: as for `So101Arm`. names: other names for the twin's
        cameras in observations, e.g. {"top": "camera1"}.
        """
        lockstep = self.clock == "lockstep"
        called = names or {}
        cameras = [
            TwinCamera(name, self._frames, lockstep, called.get(name, name)) for name in CAMERAS
        ]
        timeout_s = LOCKSTEP_BUS_TIMEOUT_S if lockstep else BUS_TIMEOUT_S
        arm = TwinArm(self.port, self.calibration, cameras, timeout_s=timeout_s, bus=bus)
        arm.lockstep_hz = self.fps
        return arm

    def reset(self, task: str, seed: int = 0) -> None:
        """Reset the scene for the instruction and put the arm in its rest pose.

        UserError for an unknown instruction; it suggests the nearest known one.
        """
        self._ask("reset", task=task, seed=int(seed))

    def success(self) -> bool:
        """Whether the task is done right now."""
        return bool(self._ask("success")["success"])

    def status(self) -> dict[str, Any]:
        """task, seed, tick, positions, drawer_m, cube_m, success, and late_s: how many seconds of
        real time the physics has skipped.
        """
        return self._ask("status")

    def picture(
        self, camera: str = OVERVIEW, height: int = 480, width: int = 640, fine: bool = False
    ) -> Frame:
        """An image (height, width, 3) uint8 RGB from any camera.

        fine: with shadows and smooth edges, 10 times slower.
        """
        reply = self._ask("picture", camera=camera, height=height, width=width, fine=fine)
        pixels = self._control.receive_bytes(reply["bytes"])
        if len(pixels) < reply["bytes"]:
            raise self._ended()
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """End the process, by force if necessary. Safe to call twice."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._control.send({"do": "stop"})
            self._await_end()
        self._control.close()
        self._errors.close()

    def __enter__(self) -> Twin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, what: str, **details: Any) -> dict[str, Any]:
        try:
            self._control.send({"do": what, **details})
        except OSError as error:
            raise self._ended() from error
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        try:
            message = self._control.receive()
        except TimeoutError as error:
            self.close()
            raise OSError(
                "the twin's process does not answer: the computer may be overloaded; try again"
            ) from error
        if message is None:
            raise self._ended()
        if "user_error" in message:
            raise UserError(message["user_error"])
        return message

    def _await_end(self) -> None:
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> OSError:
        """An error with the last line of the process's stderr."""
        if self._errors.closed:
            return OSError("the twin was closed: start a new one")
        self._await_end()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last_line = lines[-1] if lines else "it printed no error"
        return OSError(
            f"the twin's process ended with code {self._process.returncode}: {last_line}"
        )


def _start(settings: Settings, errors: Any) -> subprocess.Popen[bytes]:
    """Start the process in its own session, so that Ctrl-C reaches only our process, which then
    releases the arm before the twin ends.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "mtdit_robots.twin.server", json.dumps(asdict(settings))],
        pass_fds=(settings.control_fd, settings.frames_fd),
        stdin=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
