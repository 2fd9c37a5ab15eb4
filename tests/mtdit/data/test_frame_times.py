"""Which frame is nearest to a time, and when it is near enough."""

from __future__ import annotations

import numpy as np

from mtdit.data.frame_times import TOLERANCE_S, Clock, match


def clock(times_s: np.ndarray, ticks_per_s: int) -> Clock:
    return Clock(np.round(times_s * ticks_per_s).astype(np.int64), 1 / ticks_per_s)


def test_a_float32_timestamp_after_ten_hours_finds_its_frame() -> None:
    times = np.arange(30 * 36_000) / 30
    wanted = times.astype(np.float32).astype(np.float64)
    assert np.abs(wanted - times).max() > TOLERANCE_S, "float32 alone is coarser than LeRobot's"
    found = match(clock(times, 15_360), wanted, TOLERANCE_S)
    assert found.found.all()
    np.testing.assert_array_equal(found.number, np.arange(len(times)))


def test_a_clock_of_milliseconds_rounds_by_half_of_one() -> None:
    times = np.arange(90) / 30
    assert match(clock(times, 1000), times, TOLERANCE_S).found.all()
    assert not match(clock(times, 1000), times + 0.0012, TOLERANCE_S).found.any()


def test_a_clock_that_counts_frames_rounds_nothing() -> None:
    times = np.arange(90) / 30
    assert match(clock(times, 30), times, TOLERANCE_S).found.all()
    assert not match(clock(times, 30), times + 0.01, TOLERANCE_S).found.any()


def test_frames_at_irregular_times() -> None:
    times = np.array([0.0, 0.03, 0.1, 0.11, 0.4])
    found = match(clock(times, 10_000), np.array([0.11, 0.1, 0.4, 0.2]), TOLERANCE_S)
    assert found.number.tolist() == [3, 2, 4, 3]
    assert found.found.tolist() == [True, True, True, False]
    assert match(clock(times, 10_000), np.array([0.2]), 0.1).found.all()


def test_what_is_no_time_and_what_lies_outside() -> None:
    times = np.arange(10) / 10
    found = match(clock(times, 10_000), np.array([np.nan, -0.1, 1.0, np.inf]), TOLERANCE_S)
    assert not found.found.any()
