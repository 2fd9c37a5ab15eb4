"""What the control loop reports: each tick, and the whole run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mtdit_robots.robot import Observation, Positions

# Others: "stale camera", "bus", "leader", "policy error", "chunk timeout", "blocked", "recording"
GOOD_REASONS = ("duration", "success", "interrupted")


@dataclass(frozen=True)
class Tick:
    """One tick of the loop, for run logs, recordings and videos."""

    index: int
    time_s: float  # since the first tick
    observation: Observation
    wanted: Positions  # (J,) the action, or the held command when there is none
    sent: Positions  # (J,) what the robot accepted
    chunk: int  # number of the executed chunk, -1: none
    row: int  # row in the executed part of that chunk, -1: none
    requested: int  # number of the chunk requested in this tick, -1: none
    fresh: bool  # False: frames were stale and the policy was not called
    work_s: float  # from the start of the tick until the command was sent


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The result of a run. Durations per stage are {count, p50_ms, p95_ms, max_ms}.

    Fields with a default belong to a policy; a leader arm or a recorded episode has no chunks.
    """

    reason: str
    detail: str
    ticks: int
    duration_s: float
    late_ticks: int
    dropped_periods: int
    max_overrun_ms: float
    stages: dict[str, dict[str, float]]  # observe, policy, command, tick; the source's own
    chunks: int = 0
    prefetch_ticks: int = 0
    stalled_ticks: int = 0  # the arm held because no chunk was available
    continued_ticks: int = 0  # rows after the executed part were used because a chunk was late
    discarded_chunks: int = 0
    stale_ticks: int
    bus_errors: int  # ticks lost to bus errors
    # joint -> error -> packets that were retried; empty for a robot that does not count them
    servo_errors: dict[str, dict[str, int]]
    # joint -> largest difference between chunks at a seam, degrees
    seam_jump: dict[str, float] = field(default_factory=dict)
    interventions: dict[str, dict[str, int]]  # guard -> joint -> ticks
    exit_errors: tuple[str, ...]
    peak_memory_mb: float = 0.0  # most memory of the process until the end of the run
    verdict: str = ""  # "normal", or "abnormal: " and what was, see `verdict`; "": not judged

    @property
    def ok(self) -> bool:
        return self.reason in GOOD_REASONS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
