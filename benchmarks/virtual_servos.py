"""Six virtual servos behind each of several ports, served by a process of its own."""

from __future__ import annotations

import ctypes
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mtdit_robots.twin.bus import VirtualBus
from mtdit_robots.twin.registers import ServoRegisters

SIX = tuple(range(1, 7))
SILENT = 3
PR_SET_TIMERSLACK = 29


def serve(kind: str, count: int) -> None:
    """Serve `count` ports with six servos each until standard input closes. kind: at-once, wire or
    silent.
    """
    # sleep as exactly as the kernel can: 1 ns late instead of 50 us
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    chains = [_chain(wire_time=kind == "wire", silent=kind == "silent") for _ in range(count)]
    poll, by_fd = select.poll(), {bus.fileno(): bus for bus in chains}
    for fd in (sys.stdin.fileno(), *by_fd):
        poll.register(fd, select.POLLIN)
    print(json.dumps([bus.path for bus in chains]), flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd not in by_fd:
                return
            by_fd[fd].serve()


def _chain(wire_time: bool, silent: bool) -> VirtualBus:
    servos = {n: ServoRegisters(n) for n in SIX if not (silent and n == SILENT)}
    for servo in servos.values():
        servo.set("Return_Delay_Time", 0)

    def jump() -> None:
        for servo in servos.values():
            servo.set_present(servo.goal_actual_ticks)

    return VirtualBus(servos, on_goal=jump, wire_time=wire_time)


@contextmanager
def served(kind: str, count: int) -> Iterator[list[str]]:
    command = [sys.executable, __file__, kind, str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
