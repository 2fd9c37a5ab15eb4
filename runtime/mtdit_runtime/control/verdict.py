"""The verdict on a finished run: what was abnormal, against what, in one line.

An untrained policy drives an arm to the end of its time as well as a trained one, and the guards
keep it within the limits. Only the counts in the report tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtdit_runtime.control.report import RunReport
from mtdit_runtime.control.safety import Limits
from mtdit_runtime.text import printable

NORMAL = "normal"

# What is still normal, as a share of the ticks. Figures: runs of 64 to 240 ticks in the twin.
SPEED_SHARE = 0.20  # of the most limited joint: trained policies up to 11 %, untrained 40 to 95 %
RANGE_SHARE = 0.05  # a trained policy never left the demonstrations' range and its margin
STALLED_SHARE = 0.05  # the arm stands still in each of them; on a fast enough computer there are 0
STALE_SHARE = 0.05  # a fault of USB lasts a few ticks; more is a cable or an overloaded hub
LATE_SHARE = 0.10  # single late ticks are the operating system's; more is a lack of computing time
LOST_SHARE = 0.01  # a sound bus loses no tick for hours
# Shares of a shorter run are shares of so many ticks: one lost tick of a second is no finding.
FEWEST_TICKS = 100
# Seconds of the demonstrations' fastest motion that a new chunk may differ from the one before.
# Trained policies differ by up to 0.21 s, also at --max-speed 20, untrained ones by 0.7 s and more.
SEAM_S = 0.5

POLICY = (
    "The policy wants what the demonstrations never did: train it longer, and compare scene, "
    "cameras and calibration with the demonstrations"
)
SLOW = "This computer is too slow for the policy: time it with `mtdit bench`"
BUSY = "Other programs slow this computer down: see `mtdit doctor`"
CAMERAS = "Check the cables of the cameras: see `mtdit find-cameras`"
SERVOS = "Check cables and power of the servos: see `mtdit doctor`"


@dataclass(frozen=True)
class Finding:
    """Something abnormal, with what is normal; and what to do, if one can say."""

    what: str
    remedy: str = ""


def verdict(report: RunReport, limits: Limits) -> str:
    """NORMAL, or "abnormal: " with each finding and each remedy.

    limits: those that the guards of the run had, with joints in the order of the report.
    """
    found = list(_findings(report, limits))
    if not found:
        return NORMAL
    remedies = dict.fromkeys(finding.remedy for finding in found if finding.remedy)
    what = "; ".join(finding.what for finding in found)
    return ". ".join([f"abnormal: {what}", *remedies])


def _findings(report: RunReport, limits: Limits) -> Iterator[Finding]:
    if not report.ok:
        yield Finding(f"it ended with `{report.reason}`")
    for error in report.exit_errors:
        yield Finding(f"an error after the end ({printable(error)})")
    yield from _of_actions(report, limits)
    total = report.ticks + report.bus_errors
    for ticks, share, what, remedy in (
        (report.stalled_ticks, STALLED_SHARE, "no chunk was ready", SLOW),
        (report.late_ticks, LATE_SHARE, "the tick was late", BUSY),
        (report.stale_ticks, STALE_SHARE, "the camera frames were stale", CAMERAS),
        (report.bus_errors, LOST_SHARE, "the bus failed", SERVOS),
    ):
        if _is_more(ticks, share, total):
            yield Finding(f"{what} {_of(ticks, share, total)}", remedy)


def _of_actions(report: RunReport, limits: Limits) -> Iterator[Finding]:
    """Findings on what the policy wanted. A leader arm is not compared with demonstrations."""
    for joint, ticks in report.interventions["not finite"].items():
        if ticks:
            yield Finding(f"{ticks} actions of {printable(joint)} were not finite numbers", POLICY)
    joints = list(report.interventions["speed"])
    fastest = dict(zip(joints, np.broadcast_to(limits.fastest, len(joints)), strict=True))
    capped = dict(zip(joints, np.broadcast_to(limits.capped, len(joints)), strict=True))
    judged = [joint for joint in joints if np.isfinite(fastest[joint])]
    yield from _of_guard(report, "speed", SPEED_SHARE, [j for j in judged if not capped[j]])
    yield from _of_guard(report, "range", RANGE_SHARE, judged)
    seams_s = {j: report.seam_jump[j] / fastest[j] for j in judged if j in report.seam_jump}
    joint = max(seams_s, key=seams_s.__getitem__, default="")
    if joint and seams_s[joint] > SEAM_S:
        yield Finding(
            f"a new chunk differed from the one before by {report.seam_jump[joint]:.0f} at "
            f"{printable(joint)}, {seams_s[joint]:.1f} s of the demonstrations' fastest motion "
            f"(normal: up to {SEAM_S:g} s)",
            POLICY,
        )


def _of_guard(report: RunReport, guard: str, share: float, judged: list[str]) -> Iterator[Finding]:
    touched = report.interventions[guard]
    joint = max(judged, key=touched.__getitem__, default="")
    if joint and _is_more(touched[joint], share, report.ticks):
        count = _of(touched[joint], share, report.ticks)
        yield Finding(f"the {guard} guard changed {printable(joint)} {count}", POLICY)


def _is_more(ticks: int, share: float, total: int) -> bool:
    return ticks > share * max(total, FEWEST_TICKS)


def _of(ticks: int, share: float, total: int) -> str:
    return f"in {ticks} of {total} ticks, {ticks / total:.0%} (normal: up to {share:.0%})"
