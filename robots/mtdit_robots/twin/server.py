"""The twin's process: runs the world with a virtual servo bus, camera frames in shared memory, and
a control channel.

Bus, physics, cameras and control share one thread. There are two clocks:
- real: physics follows the wall clock in steps of at most 1/240 s. The bus is served between
  steps and between images.
- lockstep: time passes only when a goal is written while torque is on: one packet is one tick.
  Cameras are drawn before anything else is answered, so equal commands give equal positions
  and frames, bit for bit.

Started by `client.Twin`. Ends on request, or when the control channel closes because the parent has
ended.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.frames import SharedFrames
from mtdit_robots.twin.render import choose_renderer
from mtdit_robots.twin.tasks import TASKS, find_task
from mtdit_robots.twin.world import CAMERAS, World

CATCH_UP_S = 0.1  # when physics lags more than this, it skips the lag instead of catching up


@dataclass(frozen=True)
class Settings:
    """The parent's settings. control_fd, frames_fd: inherited file descriptors."""

    control_fd: int
    frames_fd: int
    clock: str  # real | lockstep
    image_size: tuple[int, int]
    link: str | None
    wire_time: bool
    fps: float  # ticks per second
    any_baud: bool

    @staticmethod
    def from_json(text: str) -> Settings:
        values = json.loads(text)
        height, width = values.pop("image_size")
        return Settings(image_size=(height, width), **values)


class Server:
    def __init__(self, settings: Settings, control: Control) -> None:
        self._control = control
        self._lockstep = settings.clock == "lockstep"
        self._world = World(next(iter(TASKS.values())), settings.fps)
        self._frames = SharedFrames(settings.frames_fd, CAMERAS, settings.image_size)
        self._bus = VirtualBus(
            self._world.registers, self._on_goal, self._world.report, settings.wire_time,
            Path(settings.link) if settings.link else None, any_baud=settings.any_baud,
        )  # fmt: skip
        self._poll = select.poll()
        for fd in (self._bus.fileno(), control.fileno()):
            self._poll.register(fd, select.POLLIN)
        self._running = True
        self._late_s = 0.0
        self._next_step_s = time.monotonic()
        self._draw_all()

    def run(self) -> None:
        """Serve until asked to stop or the parent has ended."""
        self._control.send({"port": self._bus.path, "renderer": asdict(choose_renderer())})
        try:
            if self._lockstep:
                while self._running:
                    self._serve(None)
            else:
                self._real_time()
        finally:
            self._bus.close()
            self._world.close()

    # Clocks

    def _real_time(self) -> None:
        self._next_step_s = time.monotonic()
        substep, to_draw = 0, deque[str]()
        while self._running:
            self._serve(max(0.0, self._next_step_s - time.monotonic()))
            behind_s = time.monotonic() - self._next_step_s
            if behind_s > CATCH_UP_S:
                self._late_s += behind_s
                self._next_step_s += behind_s
            elif behind_s >= 0:
                self._world.step_substep()
                self._next_step_s += self._world.substep_s
                substep += 1
                if substep % self._world.substeps == 0:
                    self._world.end_tick()
                    to_draw = deque(CAMERAS)
            if to_draw and self._next_step_s - time.monotonic() > 0:
                self._draw(to_draw.popleft())

    def _on_goal(self) -> None:
        """In lock-step, advance one tick. Not while all torque is off, so that connecting, which
        writes a goal, takes no time.
        """
        if self._lockstep and any(servo.torque_enabled for servo in self._world.registers.values()):
            self._world.step_tick()
            self._draw_all()

    # Requests

    def _serve(self, timeout_s: float | None) -> None:
        """Wait for data from bus or control until the timeout, then serve both, the bus first."""
        ready = {fd for fd, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1000)}
        if not ready:
            return
        if self._bus.serve() and not self._lockstep:
            self._world.carry_out()
        if self._control.fileno() in ready:
            self._answer(self._control.receive())

    def _answer(self, request: dict[str, Any] | None) -> None:
        if request is None or request["do"] == "stop":
            self._running = False
            return
        try:
            if request["do"] == "picture":
                self._send_picture(request)
            else:
                self._control.send(self._handle(request))
        except UserError as error:
            self._control.send({"user_error": str(error)})

    def _handle(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "reset":
            self._world.reset(find_task(request["task"]), request["seed"])
            self._draw_all()
            self._next_step_s = time.monotonic()
            return {}
        if request["do"] == "success":
            return {"success": self._world.success()}
        if request["do"] == "status":
            return self._status()
        raise UserError(f"the twin has no request {request['do']!r}")

    def _status(self) -> dict[str, Any]:
        world = self._world
        return {
            "task": world.task.name, "seed": world.seed, "tick": world.tick, "late_s": self._late_s,
            "positions": world.positions().tolist(), "drawer_m": world.drawer_m(),
            "cube_m": world.position("cube").tolist(), "success": world.success(),
        }  # fmt: skip

    def _send_picture(self, request: dict[str, Any]) -> None:
        draw = self._world.picture if request["fine"] else self._world.render
        picture = draw(request["camera"], request["height"], request["width"])
        self._control.send({"bytes": picture.nbytes}, picture.tobytes())

    # Cameras

    def _draw_all(self) -> None:
        for camera in CAMERAS:
            self._draw(camera)

    def _draw(self, camera: str) -> None:
        time_s = time.monotonic()
        self._frames.publish(
            camera, self._world.render(camera, *self._frames.image_size), self._world.tick, time_s
        )


class Control:
    """Messages over a socket: one JSON object per line, followed by raw bytes if the message gives
    their number.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n" + payload)

    def receive(self) -> dict[str, Any] | None:
        """The next message. None when the other side has closed, even within a message."""
        try:
            line = self._reader.readline()
        except ConnectionResetError:
            return None
        message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return message

    def receive_bytes(self, count: int) -> bytes:
        return self._reader.read(count)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


def main() -> None:
    """`python -m mtdit_robots.twin.server SETTINGS`, where SETTINGS is JSON."""
    settings = Settings.from_json(sys.argv[1])
    control = Control(socket.socket(fileno=settings.control_fd))
    try:
        server = Server(settings, control)
    except UserError as error:
        control.send({"user_error": str(error)})
        return
    server.run()


if __name__ == "__main__":
    main()
