"""The bundle's policy against the toy computed by hand, its caches, and what it refuses."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle
from mtdit_runtime.bundle.manifest import Sampler, Tensor
from mtdit_runtime.control.chunks import ChunkQueue
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.history import History, check_observation
from mtdit_runtime.policy.policy import draw_noise

TASK, OTHER, HORIZON, A = "open the drawer", "close the drawer", 12, 3


def observation(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-50, 50, A), {
        c: rng.integers(0, 256, (4, 6, 3), np.uint8) for c in ("top", "wrist")
    }


def test_chunk_equals_the_graphs_by_hand(policy: BundlePolicy, toy: Any) -> None:
    noise = draw_noise(np.random.default_rng(3), HORIZON, A)
    first, second = observation(0), observation(1)
    policy.reset(TASK, seed=0)
    policy.observe(*first)
    np.testing.assert_allclose(
        policy.chunk(noise), toy.chunk([first, first], TASK, noise), atol=1e-3
    )
    policy.observe(*second)
    got = policy.chunk(noise)
    assert got.shape == (HORIZON, A)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, toy.chunk([first, second], TASK, noise), atol=1e-3)


def lerobot_actions(toy: Any, observations: list[Any], seed: int) -> np.ndarray:
    """LeRobot's `select_action`, written down once more: two deques, the first observation repeated
    to fill.
    """
    n_obs, n_act = 2, 6
    rng = np.random.default_rng(seed)
    seen: deque[Any] = deque(maxlen=n_obs)
    actions: deque[Any] = deque(maxlen=n_act)
    out = []
    for item in observations:
        while len(seen) < n_obs - 1:
            seen.append(item)
        seen.append(item)
        if len(actions) == 0:
            noise = rng.standard_normal((HORIZON, A), dtype=np.float32)
            actions.extend(toy.chunk(list(seen), TASK, noise)[n_obs - 1 : n_obs - 1 + n_act])
        out.append(actions.popleft())
    return np.array(out)


def test_sixty_ticks_equal_lerobots_queues(policy: BundlePolicy, toy: Any) -> None:
    observations = [observation(100 + i) for i in range(60)]
    queue = ChunkQueue(policy)
    queue.reset(TASK, seed=5)
    got = np.array([queue.step(*o).positions for o in observations])
    np.testing.assert_allclose(got, lerobot_actions(toy, observations, seed=5), atol=1e-3)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_only_needed_frames_are_encoded_and_only_once(policy: BundlePolicy, prefetch: int) -> None:
    queue = ChunkQueue(policy, prefetch)
    queue.reset(TASK, seed=0)
    requests = 0
    for i in range(30):
        requests += queue.step(*observation(i)).requested >= 0
        queue.prepare()
    queue.reset(TASK, seed=0)  # waits for what the worker has not finished
    queue.close()
    first, others = (
        1,
        2 * (requests - 1),
    )  # instants: the first chunk sees one twice, the others two new ones
    ahead = 1 if prefetch == 0 else 0  # the 31st tick asks for a chunk and was prepared for
    assert policy.frames_encoded == 2 * (first + others + ahead)


def test_prepare_moves_an_encoding_ahead(policy: BundlePolicy) -> None:
    policy.reset(TASK, seed=0)
    for i in range(3):
        policy.observe(*observation(i))
    assert policy.frames_encoded == 0
    policy.prepare()()
    assert policy.frames_encoded == 2
    policy.observe(*observation(3))
    policy.chunk()
    assert policy.frames_encoded == 4


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_is_known_before_a_chunk_is_computed_before_it(
    policy: BundlePolicy, prefetch: int
) -> None:
    queue = ChunkQueue(policy, prefetch)
    queue.reset(TASK, seed=0)
    for i in range(30):
        queue.step(*observation(i))
        queue.prepare()
    queue.reset(TASK, seed=0)
    queue.close()
    chunks = len(policy.timings.durations("denoiser"))
    assert chunks >= 5
    assert len(policy.timings.durations("history")) == chunks + (
        prefetch == 0
    )  # prepared for the 31st tick, too


def test_another_task_is_not_answered_from_what_was_known(policy: BundlePolicy, toy: Any) -> None:
    noise, seen = (
        draw_noise(np.random.default_rng(3), HORIZON, A),
        [observation(i) for i in range(3)],
    )
    for task in (TASK, OTHER, TASK):
        policy.reset(task, seed=0)
        for before, now in itertools.pairwise(seen):
            policy.observe(*before)
            policy.prepare()()
            policy.observe(*now)
            for _ in "ab":
                np.testing.assert_allclose(
                    policy.chunk(noise), toy.chunk([before, now], task, noise), atol=1e-3
                )


def test_a_request_keeps_the_history_it_was_made_from(policy: BundlePolicy) -> None:
    policy.reset(TASK, seed=0)
    policy.observe(*observation(0))
    noise = np.zeros((HORIZON, A), np.float32)
    request, expected = policy.request(noise), policy.chunk(noise)
    policy.observe(*observation(1))
    np.testing.assert_array_equal(request(), expected)


def test_equal_seeds_give_equal_chunks(policy: BundlePolicy) -> None:
    chunks = []
    for seed in (1, 1, 2):
        policy.reset(TASK, seed)
        policy.observe(*observation(0))
        chunks.append(policy.chunk())
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert np.abs(chunks[0] - chunks[2]).max() > 1e-3


def test_known_tasks_need_no_text_encoder_new_ones_one_run(policy: BundlePolicy, toy: Any) -> None:
    policy.reset(OTHER, seed=0)
    assert policy.texts_encoded == 0
    policy.reset("wave", seed=0)
    policy.reset("wave", seed=0)
    assert policy.texts_encoded == 1
    ids = np.array([[0, 24, 2, 23, 32] + [1] * 72])  # start, w a v e</w>, end and padding
    item, noise = observation(0), np.zeros((HORIZON, A), np.float32)
    policy.observe(*item)
    toy.tasks["wave"] = (ids @ toy.token_weight)[0]
    expected = toy.chunk([item, item], "wave", noise)
    del toy.tasks["wave"]
    np.testing.assert_allclose(policy.chunk(noise), expected, atol=1e-3)


def test_history_keeps_the_newest() -> None:
    history: History[int] = History(n_obs_steps=3)
    for i in range(20):
        history.push(i)
    assert history.steps() == [17, 18, 19]
    assert history.steps_after_next() == [18, 19]


def test_history_repeats_the_first() -> None:
    history: History[str] = History(n_obs_steps=2)
    history.push("a")
    assert history.steps() == ["a", "a"]
    history.push("b")
    assert history.steps() == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"top": np.zeros((8, 6, 3), np.uint8)},
            r"camera 'top' delivers 6x8, the policy was trained on 6x4",
        ),
        ({"top": np.zeros((4, 6), np.uint8)}, r"camera 'top' delivers an array of shape \(4, 6\)"),
    ],
)
def test_wrong_frames_are_named(policy: BundlePolicy, change: Any, message: str) -> None:
    policy.reset(TASK, seed=0)
    positions, frames = observation(0)
    with pytest.raises(UserError, match=message):
        policy.observe(positions, {**frames, **change})


def test_missing_frame_is_named(policy: BundlePolicy) -> None:
    positions, frames = observation(0)
    with pytest.raises(UserError, match="no frame from camera 'wrist'"):
        policy.observe(positions, {"top": frames["top"]})


def test_without_tokenizer_a_new_task_says_so(bundle_folder: Path, policy: BundlePolicy) -> None:
    moved = bundle_folder / "tokenizer.json"
    kept = moved.read_bytes()
    moved.unlink()
    try:
        with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
            policy.reset("something else", seed=0)
    finally:
        moved.write_bytes(kept)


COMMITTED = np.array([[10.0, -20.0, 30.0], [11.0, -21.0, 31.0], [12.0, -22.0, 99.9]])


def test_committed_rows_come_back_and_the_others_are_drawn(policy: BundlePolicy) -> None:
    policy.reset(TASK, seed=0)
    policy.observe(*observation(0))
    noise = np.ones((HORIZON, A), np.float32)
    promised = COMMITTED.copy()
    request = policy.request(noise, promised)
    promised += 5.0  # the caller's array; the request was made before
    held, free = request(), policy.chunk(noise)
    np.testing.assert_array_equal(held[:3], COMMITTED)
    np.testing.assert_array_equal(held[3:], free[3:])
    np.testing.assert_array_equal(policy.chunk(noise, COMMITTED[:0]), free)


def test_what_cannot_be_committed(policy: BundlePolicy) -> None:
    policy.reset(TASK, seed=0)
    policy.observe(*observation(0))
    with pytest.raises(ValueError, match="13 committed actions do not fit a chunk of 12"):
        policy.request(committed=np.zeros((HORIZON + 1, A)))
    with pytest.raises(
        ValueError, match=r"noise has shape \(4, 12, 3\), this policy takes \(12, 3\)"
    ):
        policy.request(np.zeros((4, HORIZON, A), np.float32))


class Echo:
    """A DDPM denoiser that keeps what it was given."""

    name = "denoiser"
    given: Mapping[str, Any]

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.given = inputs
        return {"actions": inputs["noise"]}

    def describe(self) -> str:
        return "denoiser: an echo"


@pytest.fixture
def ddpm(bundle: Bundle) -> tuple[BundlePolicy, Echo]:
    graphs, echo = bundle.manifest.graphs, Echo()
    inputs = (*graphs["denoiser"].inputs, Tensor("step_noise", (1, 2, HORIZON, A), "float32"))
    graphs = {**graphs, "denoiser": replace(graphs["denoiser"], inputs=inputs)}
    manifest = replace(
        bundle.manifest, graphs=graphs, sampler=Sampler("ddpm", 3, (2.0, 1.0, 0.0), None)
    )
    engines = replace(choose_engines(bundle, "onnx"), denoiser=echo)
    return BundlePolicy(replace(bundle, manifest=manifest), engines), echo


def test_ddpm_draws_its_steps_from_the_same_generator(ddpm: tuple[BundlePolicy, Echo]) -> None:
    policy, echo = ddpm
    policy.reset(TASK, seed=6)
    policy.observe(*observation(0))
    policy.chunk()
    rng = np.random.default_rng(6)
    np.testing.assert_array_equal(echo.given["noise"][0], draw_noise(rng, HORIZON, A))
    np.testing.assert_array_equal(
        echo.given["step_noise"][0], [draw_noise(rng, HORIZON, A) for _ in range(2)]
    )
    np.testing.assert_array_equal(echo.given["prefix_mask"], np.zeros((1, HORIZON, 1)))
    noise = draw_noise(np.random.default_rng(7), HORIZON, A, draws=3)
    policy.chunk(noise, COMMITTED)
    np.testing.assert_array_equal(echo.given["noise"][0], noise[0])
    np.testing.assert_array_equal(echo.given["step_noise"][0], noise[1:])
    np.testing.assert_array_equal(echo.given["prefix_mask"][0, :, 0], [1.0] * 3 + [0.0] * 9)
    with pytest.raises(ValueError, match=r"this policy takes \(3, 12, 3\)"):
        policy.chunk(noise[0])


def test_frames_hold_whole_numbers_up_to_255() -> None:
    """Frames of 0 to 1, as other libraries have them, would be black."""
    frame = np.zeros((4, 6, 3), np.float32)
    with pytest.raises(UserError, match="camera 'top' delivers float32, the policy needs uint8"):
        check_observation(np.zeros(6), {"top": frame}, 6, {"top": (4, 6)})
