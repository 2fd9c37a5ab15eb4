"""LeRobot's processors are the oracle: what we compute from a checkpoint equals what they do, or
the step that differs is refused by name.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_oracle import lerobot_policy, save_as_lerobot
from safetensors.torch import load_file, save_file
from small_checkpoint import POLICIES, TASK

from mtdit.checkpoint.read import Checkpoint, open_checkpoint
from mtdit.policies.images import normalized_images
from mtdit.policies.multi_task_dit.clip_lookup import tokenize
from mtdit_robots.errors import UserError

IMAGES = "observation.images."
Raw = dict[str, Any]
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


@pytest.fixture(scope="module")
def original(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lerobots") / "pretrained_model"
    save_as_lerobot(lerobot_policy(clip_folder, 2, **POLICIES[0][1]), folder)
    return folder


@pytest.fixture
def theirs(original: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(original, tmp_path / "pretrained_model"))


def edit(folder: Path, name: str, change: Callable[[Raw], Any]) -> None:
    raw = json.loads((folder / name).read_text())
    change(raw)
    (folder / name).write_text(json.dumps(raw))


def assert_lerobots(folder: Path) -> Checkpoint:
    """State, frames, tokens and actions equal what LeRobot's processors make of them."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    ours = open_checkpoint(folder)
    rng = np.random.default_rng(5)
    state, frame = rng.uniform(-90, 90, 6).astype(np.float32), rng.integers(0, 256, (80, 96, 3))
    item: Raw = {"observation.state": torch.from_numpy(state), "task": TASK}
    for camera in ours.config.cameras:
        item[IMAGES + camera] = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
    found = before(item)
    np.testing.assert_allclose(
        ours.state_stats.normalize(state), found["observation.state"][0].numpy(), rtol=1e-6
    )
    for camera in ours.config.cameras:
        pixels = normalized_images(
            torch.from_numpy(frame.astype(np.uint8)), *ours.image_scaling(camera)
        )
        policys = ours.rename_map.get(IMAGES + camera, IMAGES + camera)
        np.testing.assert_allclose(pixels.numpy(), found[policys][0].numpy(), atol=1e-5)
    ids = tokenize(ours.tokenizer(), [TASK], ours.config)
    assert ids.tolist() == found["observation.language.tokens"].tolist()
    actions = torch.from_numpy(rng.uniform(-1, 1, (1, 6)).astype(np.float32))
    np.testing.assert_allclose(
        ours.action_stats.unnormalize(actions.numpy()), after(actions).numpy(), rtol=1e-5
    )
    return ours


def renamed(folder: Path, names: dict[str, str], with_stats: bool = True) -> Path:
    """As LeRobot saves a policy trained with this rename_map; without the statistics' names
    changed, as its trainer does.
    """

    def change(raw: Raw) -> None:
        text = json.dumps(raw)
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        raw.clear()
        raw.update(json.loads(text))

    for name in ("config.json", BEFORE, AFTER):
        edit(folder, name, change)
    edit(folder, BEFORE, lambda raw: raw["steps"][0]["config"].update(rename_map=names))
    for path in folder.glob("policy_*.safetensors") if with_stats else ():
        stats = load_file(path)
        for old, new in names.items():
            stats = {k.replace(f"{old}.", f"{new}."): v for k, v in stats.items()}
        save_file(stats, path)
    return folder


NAMES = {f"{IMAGES}top": f"{IMAGES}camera1", f"{IMAGES}wrist": f"{IMAGES}camera2"}


@pytest.mark.parametrize("with_stats", [True, False])
def test_a_policy_trained_with_rename_map_has_the_robots_names(
    with_stats: bool, theirs: Path
) -> None:
    ours = assert_lerobots(renamed(theirs, NAMES, with_stats))
    assert list(ours.config.cameras) == ["top", "wrist"]
    assert np.array_equal(ours.image_scaling("top")[1], np.ones(3)) is not with_stats
    again = open_checkpoint(theirs, {f"{IMAGES}front": f"{IMAGES}camera1"})
    assert list(again.config.cameras) == ["front", "camera2"]
    assert list(open_checkpoint(theirs, {}).config.cameras) == ["camera1", "camera2"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"a.top": f"{IMAGES}top", "a.front": f"{IMAGES}top"}, "both renamed to"),
        ({f"{IMAGES}top": f"{IMAGES}camera1"}, "but that is renamed to"),
    ],
)
def test_maps_that_do_not_say_which_camera(names: dict[str, str], says: str, theirs: Path) -> None:
    with pytest.raises(UserError, match=says):
        open_checkpoint(theirs, names)


def step(raw: Raw, name: str) -> Raw:
    found: Raw = next(s for s in raw["steps"] if name in (s.get("registry_name"), s.get("class")))
    return found


def setting(name: str, **values: Any) -> Callable[[Raw], None]:
    return lambda raw: step(raw, name)["config"].update(values)


def insert(name: str, place: int = 1, **config: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["steps"].insert(place, {"registry_name": name, "config": config})


def last_first(raw: Raw) -> None:
    raw["steps"].insert(0, raw["steps"].pop())


IDENTITY = {"class": "lerobot.processor.pipeline.IdentityProcessorStep", "config": {}}
MODES = {"VISUAL": "MEAN_STD", "STATE": "IDENTITY", "ACTION": "MIN_MAX"}
SAME: list[tuple[str, Callable[[Raw], Any]]] = [  # applied, or neutral
    (BEFORE, setting("tokenizer_processor", max_length=20)),
    (BEFORE, setting("tokenizer_processor", padding="longest")),
    (BEFORE, setting("device_processor", float_dtype="float32")),
    (BEFORE, insert("to_batch_processor", 3)),
    (BEFORE, insert("relative_actions_processor", enabled=False)),
    (AFTER, insert("absolute_actions_processor", enabled=False)),
    (AFTER, lambda raw: raw["steps"].append(IDENTITY)),
    (BEFORE, setting("normalizer_processor", norm_map=MODES)),
    (BEFORE, last_first),  # the normalisation first: nothing is renamed
    (BEFORE, setting("rename_observations_processor", rename_map={"a.b": "c.d"})),
]
REFUSED: list[tuple[str, Callable[[Raw], Any], str]] = [
    (BEFORE, setting("tokenizer_processor", max_length=512), "tokenizer_max_length"),
    (BEFORE, setting("tokenizer_processor", padding_side="left"), "tokenizer_padding_side"),
    (BEFORE, setting("tokenizer_processor", task_key="prompt"), "instruction from 'prompt'"),
    (BEFORE, setting("tokenizer_processor", tokenizer_name="google/paligemma"), "CLIP's"),
    (BEFORE, setting("device_processor", float_dtype="float16"), "computes in float16"),
    (AFTER, setting("device_processor", float_dtype="bfloat16"), "computes in bfloat16"),
    (BEFORE, insert("relative_actions_processor", enabled=True), "relative to the position"),
    (AFTER, insert("absolute_actions_processor", enabled=True), "relative to the position"),
    (BEFORE, insert("smolvla_new_line_processor"), "not a step that mtdit knows"),
    (AFTER, insert("map_tensor_to_delta_action_dict"), "not a step that mtdit knows"),
    (BEFORE, insert("my_own_step", 0), "my_own_step"),
    (BEFORE, setting("normalizer_processor", eps=1e-3), "eps 0.001"),
    (AFTER, setting("unnormalizer_processor", eps=1e-3), "eps 0.001"),
    (AFTER, setting("unnormalizer_processor", norm_map={"ACTION": "MEAN_STD"}), "undoes MEAN"),
    (BEFORE, setting("normalizer_processor", normalize_observation_keys=[]), "normalises obs"),
    (BEFORE, setting("normalizer_processor", features={}), "normalises observation.state by"),
    (BEFORE, setting("normalizer_processor", stats={"action": {}}), "has the setting 'stats'"),
    (BEFORE, lambda raw: raw["steps"].append(copy.deepcopy(raw["steps"][-1])), "comes after"),
    (BEFORE, lambda raw: raw["steps"].pop(2), "no step tokenizer_processor"),
    (AFTER, insert("rename_observations_processor", rename_map={}), "wrong side"),
]


@pytest.mark.parametrize("number", range(len(SAME)))
def test_steps_that_are_applied_or_neutral(number: int, theirs: Path) -> None:
    edit(theirs, *SAME[number])
    assert_lerobots(theirs)


@pytest.mark.parametrize(("file", "change", "says"), REFUSED, ids=[r[2] for r in REFUSED])
def test_steps_that_are_refused_by_name(
    file: str, change: Callable[[Raw], Any], says: str, theirs: Path
) -> None:
    edit(theirs, file, change)
    with pytest.raises(UserError, match=says):
        open_checkpoint(theirs)


def test_a_postprocessor_of_another_training_is_refused(theirs: Path) -> None:
    (path,) = theirs.glob("policy_postprocessor*.safetensors")
    save_file({k: v + 1 if k == "action.max" else v for k, v in load_file(path).items()}, path)
    with pytest.raises(UserError, match="different statistics of actions"):
        open_checkpoint(theirs)
    (theirs / AFTER).unlink()
    with pytest.raises(UserError, match=r"no policy_postprocessor\.json"):
        open_checkpoint(theirs)
