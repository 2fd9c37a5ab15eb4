"""The heartbeat of a run: a small file that tells other processes that the loop still ticks.

The file's time is that of the last tick. It is locked for as long as the process lives, also across
containers, so a file without a lock was left behind by a run that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_runtime.control.clock import Clock
from mtdit_runtime.files import load

RUN_DIR = "MTDIT_RUN_DIR"  # the images set it to a volume that all containers share
BEAT_S = 1.0
MAX_SILENT_S = 5.0  # a loop that ticks beats every second; a busy computer may miss some


@dataclass(frozen=True)
class Running:
    """What a run says of itself."""

    policy: str
    task: str


@dataclass(frozen=True)
class Heartbeat:
    """A run, as another process sees it. is_alive: its process exists; silent_s: since its last
    tick.
    """

    run: Running
    is_alive: bool
    silent_s: float

    @property
    def is_fresh(self) -> bool:
        return self.is_alive and self.silent_s <= MAX_SILENT_S


def run_folder() -> Path | None:
    """Where runs leave their heartbeats: $MTDIT_RUN_DIR, or mtdit/ in $XDG_RUNTIME_DIR; None where
    neither is set.
    """
    if folder := os.environ.get(RUN_DIR):
        return Path(folder)
    session = os.environ.get("XDG_RUNTIME_DIR")
    return Path(session, "mtdit") if session else None


class BeatingClock:
    """A clock of the loop that calls `beat` after each wait, so once per tick."""

    def __init__(self, clock: Clock, beat: Callable[[], None]) -> None:
        self._clock, self._beat = clock, beat

    def now_s(self) -> float:
        return self._clock.now_s()

    def wait_until(self, time_s: float) -> None:
        self._clock.wait_until(time_s)
        self._beat()


@contextmanager
def heartbeat(run: Running, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Within the block there is a heartbeat; yields what makes it beat, at most once a second.

    A folder that cannot be written is said, and the run goes on without: the arm needs no file.
    """
    folder = run_folder()
    if folder is None:
        yield lambda: None
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_left_behind(folder)
        descriptor, name = tempfile.mkstemp(".json", "run-", folder)
    except OSError as error:
        say(f"no heartbeat for `mtdit doctor`: {folder}: {error.strerror}; set {RUN_DIR}")
        yield lambda: None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(asdict(run)).encode())
        yield _beat(descriptor)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)


def _beat(descriptor: int) -> Callable[[], None]:
    next_s = time.monotonic()

    def beat() -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            os.utime(descriptor)
            next_s = time.monotonic() + BEAT_S

    return beat


def heartbeats(now_s: float | None = None) -> list[Heartbeat]:
    """The heartbeats of this computer, those of killed runs included."""
    folder = run_folder()
    found = [_read(file, now_s) for file in sorted(_files(folder))] if folder else []
    return [one for one in found if one is not None]


def _files(folder: Path) -> Iterator[Path]:
    return folder.glob("run-*.json")


def _read(file: Path, now_s: float | None) -> Heartbeat | None:
    """None: the run ended meanwhile, or is just writing the file."""
    try:
        run = load(file, Running, "heartbeat")
        silent_s = (time.time() if now_s is None else now_s) - file.stat().st_mtime
        return Heartbeat(run, _is_locked(file), max(0.0, silent_s))
    except (UserError, FileNotFoundError):
        return None


def _is_locked(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _remove_left_behind(folder: Path) -> None:
    for file in _files(folder):
        seen = _read(file, None)
        if seen is not None and not seen.is_alive:
            file.unlink(missing_ok=True)
