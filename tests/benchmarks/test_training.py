"""The training benchmark reads both tools' logs rightly and ends with the figures others read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import training
import training_logs
import training_report
import training_runs

# Printed by lerobot-train 0.6.1 behind its progress bar; in the third figures are changed to those
# of a bad end.
LEROBOT_LOG = """\
INFO 2026-11-21 05:03:40 ot_train.py:597 Start offline training on a fixed dataset, with effective batch size: 32
Training:   8%|8         | 1/12 [01:15<13:49, 75.40s/step]INFO 2026-11-21 05:04:56 ot_train.py:641 step:1 smpl:32 \
ep:0 epch:0.05 loss:1.047 grdn:1.632 lr:5.0e-06 updt_s:3.565 data_s:71.833 smp/s:0
Training:  58%|#####8    | 7/12 [01:18<00:16,  3.21s/step]INFO 2026-11-21 05:04:59 ot_train.py:641 step:7 smpl:224 \
ep:2 epch:0.34 loss:1.051 grdn:1.741 lr:3.5e-05 updt_s:0.245 data_s:0.009 smp/s:126
INFO 2026-11-21 05:05:00 ot_train.py:641 step:1K smpl:32K ep:3 epch:0.58 loss:nan grdn:1.910 lr:6.0e-05 updt_s:0.249 \
data_s:0.083 smp/s:96 mem_gb:1.02
INFO 2026-11-21 05:05:00 ot_train.py:770 End of training
"""


def test_lerobots_progress_lines_are_told_from_the_rest() -> None:
    found = [training_logs.lerobot_figures(line) for line in LEROBOT_LOG.splitlines()]
    assert found[0] is None
    assert found[4] is None
    assert found[1] == {"loss": 1.047, "updt_s": 3.565, "data_s": 71.833}
    assert found[2] == {"loss": 1.051, "updt_s": 0.245, "data_s": 0.009}
    assert found[3] is not None
    assert found[3]["loss"] != found[3]["loss"]  # a loss that is not a number stays one


def test_lerobots_log_becomes_a_run() -> None:
    run = training_logs.read_lerobot(iter(LEROBOT_LOG.splitlines()), Path(), began=0.0)
    assert run.steps == [
        training_logs.LOG_EVERY,
        2 * training_logs.LOG_EVERY,
        3 * training_logs.LOG_EVERY,
    ]
    assert run.loss[:2] == [1.047, 1.051]
    assert run.at_s[0] == 0.0
    assert run.at_s == sorted(run.at_s)
    assert run.wait == pytest.approx(0.083 / 0.332)  # the middle one of three: 95 %, 4 %, 25 %
    assert run.total_s >= run.first_step_s > 0.0


def test_a_tool_without_figures_is_an_error() -> None:
    nothing: Iterator[str] = iter(["Traceback (most recent call last):"])
    with pytest.raises(RuntimeError, match="no figures"):
        training_logs.read_lerobot(nothing, Path(), began=0.0)


def report(step: int, elapsed_s: float) -> str:
    return json.dumps(
        {
            "step": step,
            "loss": 1.0 / step,
            "samples_per_s": 9.0,
            "data_wait": 0.1,
            "elapsed_s": elapsed_s,
        }
    )


def test_our_log_becomes_a_run() -> None:
    log = [
        report(5, 3.0),
        json.dumps({"step": 5, "val_loss": 0.5, "best": True}),
        report(10, 4.0),
        report(15, 5.5),
    ]
    run = training_logs.mtdit_run(log, written_s=20.0, total_s=21.0)
    assert run.steps == [5, 10, 15]
    assert run.at_s == [0.0, 1.0, 2.5]
    assert run.first_step_s == 17.5  # the last line was written at 20 s, 2.5 s after the first
    assert run.wait == pytest.approx(0.1)


def test_the_rate_leaves_out_what_comes_before_the_skipped_step() -> None:
    run = training_logs.Run(
        [5, 10, 15, 20],
        [1.0] * 4,
        [0.0, 100.0, 101.0, 103.0],
        wait=0.0,
        first_step_s=0.0,
        total_s=0.0,
    )
    assert run.rate(batch=6, skip=8) == pytest.approx(6 * 10 / 3)
    assert run.rate(batch=6, skip=99) == pytest.approx(
        6 * 5 / 2
    )  # a short run still has a last stretch


def run_at(rate: float, wait: float = 0.0) -> training_logs.Run:
    """A run of that many steps per second."""
    steps = [20, 25, 30]
    return training_logs.Run(
        steps, [1.0] * 3, [(s - 20) / rate for s in steps], wait, first_step_s=4.0, total_s=9.0
    )


def test_ratios_are_medians_over_the_rounds() -> None:
    taken = {
        training_runs.LEROBOT: [
            run_at(1.0, wait=0.5),
            run_at(2.0, wait=0.5),
            run_at(4.0, wait=0.5),
        ],
        training_runs.AS_LEROBOT: [run_at(3.0), run_at(4.0), run_at(6.0)],  # 3, 2 and 1.5 times
        training_runs.BY_DEFAULT: [run_at(1.0), run_at(2.0), run_at(4.0)],
    }
    case = training.CPU_CASES[0]
    made = training_report.summary(case, taken, workers=4)
    assert made["ratio_samples_per_s"] == 2.0
    assert made["ratio_with_average"] == 1.0
    assert made["ratio_without_waiting_for_data"] == 1.0
    ours = made["sides"][training_runs.AS_LEROBOT]
    assert (ours["lowest"], ours["samples_per_s"], ours["highest"]) == (96.0, 128.0, 192.0)
    result = {
        "cases": [made],
        "curves": None,
        "rounds": 3,
        "steps": 30,
        **training_report.machine(),
    }
    table = training_report.markdown(result)
    assert "| mtdit | 128.0 | 96.0 .. 192.0 | 0 % | 4 | 9 |" in table
    assert "**2.00x**" in table
    assert {"hardware", "threads", "versions", "video_backend"} <= set(
        json.loads(json.dumps(result))
    )


def test_smoothed_curves_and_their_difference() -> None:
    assert training_report.smoothed([2.0] * 12) == [2.0] * (12 - training_report.SMOOTH + 1)
    assert training_report.smoothed([1.0, 3.0]) == [2.0]
    assert training_report.relative_difference([1.0, 3.0], [3.0, 1.0]) == pytest.approx(1.0)
