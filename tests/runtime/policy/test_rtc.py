"""The weights of a guided chunk against LeRobot's, number by number."""

from __future__ import annotations

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.policy.rtc import SCHEDULES, prefix_weights

GOLDEN = [
    1,
    1,
    1,
    0.875,
    0.75,
    0.625,
    0.5,
    0.375,
    0.25,
    0.125,
    0,
    0,
    0,
    0,
    0,
    0,
]  # 3 committed, 10 of 16


def test_golden_numbers() -> None:
    np.testing.assert_allclose(prefix_weights(16, 3, 10), GOLDEN, atol=1e-7)
    np.testing.assert_array_equal(prefix_weights(16, 3, 10, "ones"), [1] * 10 + [0] * 6)
    np.testing.assert_array_equal(prefix_weights(16, 3, 10, "zeros"), [1] * 3 + [0] * 13)
    assert prefix_weights(16, 3, 10, "exp")[6] == pytest.approx(0.5 * np.expm1(0.5) / (np.e - 1))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("horizon", "committed", "end"),
    [(16, 3, 10), (16, 0, 10), (16, 12, 10), (16, 16, 16), (8, 3, 20), (8, 0, 0)],
)
def test_weights_are_lerobots(schedule: str, horizon: int, committed: int, end: int) -> None:
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.policies.rtc.modeling_rtc import RTCProcessor

    theirs = RTCProcessor(
        RTCConfig(prefix_attention_schedule=RTCAttentionSchedule[schedule.upper()])
    )
    wanted = theirs.get_prefix_weights(committed, min(end, horizon), horizon).numpy()
    ours = prefix_weights(horizon, committed, end, schedule)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_unknown_schedule_is_named() -> None:
    with pytest.raises(UserError, match="'cubic' is unknown: use one of linear, exp, ones, zeros"):
        prefix_weights(16, 3, 10, "cubic")
