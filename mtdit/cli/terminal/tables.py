"""The tables that the commands print, except those about bundles (`bundle_tables`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtdit_runtime.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mtdit_robots.so101.calibrate import Sweep
    from mtdit_robots.so101.calibration import Calibration
    from mtdit_runtime.control.report import RunReport

MAX_CELL = 1000  # characters
BAR_CELLS = 40  # characters for one turn of the encoder
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table: numbers aligned right, words left, "ok", "warn" and "fail" in colour. Control
    characters are escaped.
    """
    from rich.table import Table
    from rich.text import Text

    def cell(value: Any) -> Text:
        word = printable(value, MAX_CELL)
        return Text(word, style=COLOURS.get(word, ""))

    out = Table(title=printable(title, MAX_CELL), title_justify="left", box=None, pad_edge=False)
    cells = [[cell(value) for value in row] for row in rows]
    for i, column in enumerate(columns):
        numbers = bool(cells) and all(row[i].plain.replace(".", "", 1).isdigit() for row in cells)
        out.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        out.add_row(*row)
    return out


def report_table(report: RunReport) -> Group:
    """The report of a run: how it ended, its timing, what the guards changed; last, its verdict."""
    from rich.console import Group
    from rich.text import Text

    from mtdit_runtime.control.verdict import NORMAL

    is_normal = report.verdict == NORMAL
    line = Text(f"verdict: {report.verdict}", style=COLOURS["ok" if is_normal else "warn"])
    return Group(table("", ["", ""], _report_rows(report)), line)


def _report_rows(report: RunReport) -> Iterator[tuple[str, str]]:
    yield "ended", f"{report.reason}: {report.detail}" if report.detail else report.reason
    yield "ran", f"{report.duration_s:.1f} s, {report.ticks} ticks"
    yield "late", f"{report.late_ticks} ticks, at most {report.max_overrun_ms:.1f} ms"
    for stage, d in report.stages.items():
        times = f"p50 {d['p50_ms']:.1f}  p95 {d['p95_ms']:.1f}  max {d['max_ms']:.1f} ms"
        yield stage, f"{times}  (x{d['count']})"
    if "chunk" in report.stages:  # a policy drove the arm
        yield "chunks", f"{report.chunks}, requested {report.prefetch_ticks} ticks ahead"
        held = f"{report.continued_ticks} ticks on the old chunk, {report.stalled_ticks} ticks held"
        yield "late chunks", f"{held}, {report.discarded_chunks} chunks discarded"
        joint = max(report.seam_jump, key=report.seam_jump.__getitem__)
        yield "largest seam", f"{report.seam_jump[joint]:.2f} at {joint}"
    for guard, joints in report.interventions.items():
        touched = ", ".join(f"{joint} x{n}" for joint, n in joints.items() if n)
        yield f"limited: {guard}", touched or "never"
    yield "stale frames", f"{report.stale_ticks} ticks held"
    servos = [
        f"{joint} {error} x{n}"
        for joint, errors in report.servo_errors.items()
        for error, n in errors.items()
    ]
    yield "bus errors", "; ".join([f"{report.bus_errors} ticks lost", *servos])
    if report.peak_memory_mb:
        yield "memory", f"{report.peak_memory_mb:.0f} MB at most"
    for error in report.exit_errors:
        yield "exit error", error


def errors_table(title: str, errors: Mapping[str, Mapping[str, float]]) -> Table:
    """Errors as joint -> {"mean", "max"}, degrees (gripper: percent)."""
    rows = [
        (joint, *(f"{value:.2f}" for value in values.values())) for joint, values in errors.items()
    ]
    return table(title, ["joint", "mean", "max"], rows)


def checks_table(checks: Iterable[Any]) -> Table:
    """The doctor's checks: name, ok, warn or fail, finding and fix."""
    rows = [(c.id, c.status, c.finding, c.remedy) for c in checks]
    return table("", ["check", "", "finding", "what to do"], rows)


def joint_findings_table(findings: Iterable[Any]) -> Table:
    """What `mtdit calibrate --check` found for each joint."""
    rows = [(f.joint, f.status, f.finding, f.remedy) for f in findings]
    return table("", ["joint", "", "finding", "what to do"], rows)


def calibration_table(calibration: Calibration) -> Table:
    """One row per joint, in encoder ticks."""
    rows = [
        (joint, c.id, c.drive_mode, c.homing_offset, c.range_min, c.range_max)
        for joint, c in calibration.items()
    ]
    return table("", ["joint", "id", "drive mode", "homing offset", "min", "max"], rows)


def sweep_bars(sweep: Sweep, min_share: float, advice: str) -> Text:
    """One line per joint: a bar over one turn; lowest, present and highest tick; span; and a tick
    mark once the span is large enough.
    """
    from rich.text import Text

    from mtdit_robots.so101.calibrate import FULL_TURN, NOMINAL_TRAVEL_DEG
    from mtdit_robots.so101.joints import JOINTS

    def span(joint: str) -> str:
        if joint == FULL_TURN:
            return "full turn"
        if joint in sweep.wrapped:
            return "crossed tick 0"
        return f"{sweep.span_deg(joint):3.0f} of {NOMINAL_TRAVEL_DEG[joint]:3.0f} degrees"

    text = Text()
    for joint in JOINTS:
        ticks = [each[joint] for each in (sweep.low, sweep.now, sweep.high)]
        low, now, high = (min(max(t * BAR_CELLS // 4096, 0), BAR_CELLS - 1) for t in ticks)
        cells = ["━" if low <= cell <= high else "─" for cell in range(BAR_CELLS)]
        cells[now] = "●"
        text.append(f"{joint:14}")
        text.append("".join(cells), style="red" if joint in sweep.wrapped else "cyan")
        text.append(f" {ticks[0]:4} {ticks[1]:4} {ticks[2]:4}  {span(joint):20}")
        text.append("✓\n" if sweep.enough(joint, min_share) else "\n", style="green")
    return text.append(advice)


def cameras_table(watched: Iterable[Any]) -> Table:
    """What each camera delivered while all of them ran at once."""
    rows = [
        (
            one.name,
            one.pixel_format,
            f"{one.rate_hz:.1f} of {one.asked_hz:g}",
            f"{one.oldest_s * 1e3:.0f}",
            one.problem or (f"too {one.exposure}" if one.exposure else "ok"),
        )
        for one in watched
    ]
    return table("all cameras at once", ["camera", "format", "Hz", "oldest frame, ms", ""], rows)


def picture(frame: NDArray[np.uint8], columns: int = 72) -> Text:
    """A picture of half-block characters from (H, W, 3) uint8. Each character shows two pixels, one
    above the other, which keeps the aspect ratio.
    """
    import numpy as np
    from rich.text import Text

    def rgb(pixel: NDArray[np.uint8]) -> str:
        return ",".join(str(int(v)) for v in pixel)

    height, width, _ = frame.shape
    rows = max(2, round(columns * height / width)) // 2 * 2
    y, x = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    small = frame[y][:, x]  # (rows, columns, 3)
    text = Text()
    for upper, lower in zip(small[0::2], small[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({rgb(above)}) on rgb({rgb(below)})")
        text.append("\n")
    return text
