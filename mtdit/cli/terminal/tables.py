"""All tables that the commands print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mtdit_export.export import ExportReport

from mtdit.cli.terminal.console import COLOURS, console
from mtdit_robots.so101.joints import JOINTS
from mtdit_runtime.control.report import RunReport
from mtdit_runtime.text import printable


def show(report: RunReport) -> None:
    """Print a report as a table."""
    console.print(table("", ["", ""], report_rows(report)))


def show_errors(title: str, errors: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of errors: joint -> {"mean", "max"}, degrees (gripper: percent)."""
    rows = [
        (joint, *(f"{value:.2f}" for value in errors[joint].values()))
        for joint in JOINTS
        if joint in errors
    ]
    console.print(table(title, ["joint", "mean", "max"], rows))


MAX_CELL = 1000  # characters


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table: numbers aligned right, words left, "ok", "warn" and "fail" in colour. Control
    characters are escaped.
    """
    out = Table(title=printable(title, MAX_CELL), title_justify="left", box=None, pad_edge=False)
    cells = [[_cell(value) for value in row] for row in rows]
    for i, column in enumerate(columns):
        numbers = bool(cells) and all(row[i].plain.replace(".", "", 1).isdigit() for row in cells)
        out.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        out.add_row(*row)
    return out


def _cell(value: Any) -> Text:
    word = printable(value, MAX_CELL)
    return Text(word, style=COLOURS.get(word, ""))


def report_table(report: RunReport) -> Table:
    """The report as a table for the terminal."""
    from rich.table import Table

    title = f"{report.reason}: {report.detail}" if report.detail else report.reason
    table = Table(title=title, show_header=False)
    for name, text in _report_rows(report):
        table.add_row(name, text)
    return table


def _report_rows(report: RunReport) -> Iterator[tuple[str, str]]:
    yield "ran", f"{report.duration_s:.1f} s, {report.ticks} ticks"
    yield "late", f"{report.late_ticks} ticks, at most {report.max_overrun_ms:.1f} ms"
    for stage, d in report.stages.items():
        times = f"p50 {d['p50_ms']:.1f}  p95 {d['p95_ms']:.1f}  max {d['max_ms']:.1f} ms"
        yield stage, f"{times}  (x{d['count']})"
    yield "chunks", f"{report.chunks}, requested {report.prefetch_ticks} ticks ahead"
    ticks = f"{report.continued_ticks} ticks on the old chunk, {report.stalled_ticks} ticks held"
    yield "late chunks", f"{ticks}, {report.discarded_chunks} chunks discarded"
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
    for error in report.exit_errors:
        yield "exit error", error


def report_rows(report: RunReport) -> list[tuple[str, Any]]:
    """The report of a teleoperated run as (name, text) rows."""
    limited = {
        guard: ", ".join(f"{joint} x{n}" for joint, n in joints.items() if n)
        for guard, joints in report.interventions.items()
    }
    servos = [
        f"{joint} {error} x{n}"
        for joint, errors in report.servo_errors.items()
        for error, n in errors.items()
    ]
    return [
        ("ended", f"{report.reason}: {report.detail}" if report.detail else report.reason),
        ("ran", f"{report.duration_s:.1f} s, {report.ticks} ticks"),
        ("late", f"{report.late_ticks} ticks, at most {report.max_overrun_ms:.1f} ms"),
        *((stage, f"p50 {d['p50_ms']:.1f}  p95 {d['p95_ms']:.1f}  max {d['max_ms']:.1f} ms")
          for stage, d in report.stages.items()),
        *((f"limited: {guard}", joints or "never") for guard, joints in limited.items()),
        ("bus errors", "; ".join([f"{report.bus_errors} ticks lost", *servos])),
        *(("exit error", error) for error in report.exit_errors),
    ]  # fmt: skip


EXPORT_COLUMNS: list[tuple[str, str, Callable[[float], str]]] = [
    ("parameters", "parameters", lambda v: f"{v / 1e6:.2f} M"),
    ("file", "megabytes", lambda v: f"{v:.1f} MB"),
    ("max error", "max_error", lambda v: f"{v:.1e}"),
    ("mean error", "mean_error", lambda v: f"{v:.1e}"),
    ("latency here", "latency_ms", lambda v: f"{v:.1f} ms"),
]


def export_table(report: ExportReport) -> Table:
    """One row per stage of an export: its size, its error against torch, its latency here."""
    from mtdit_runtime.verify.gates import labelled

    title = (
        f"{report.bundle}: {report.precision}, {report.sampler.kind} {report.sampler.steps} steps"
    )
    rows = [
        [labelled(name), *(form(f[key]) if key in f else "" for _, key, form in EXPORT_COLUMNS)]
        for name, f in report.stages.items()
    ]
    return table(title, ["stage", *(column for column, _, _ in EXPORT_COLUMNS)], rows)
