"""What happens to the files of a checkpoint: older and newer LeRobots, other trainers, hands.

Each change says whether mtdit must accept it or what a refusal must say, and whether LeRobot's own
copy gets it too: a LeRobot that does not know a newer field, or weights of another wrapper, is the
oracle only without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import changed_processors as steps
import changed_tensors as tensors
from checkpoint_files import (
    AFTER,
    BEFORE,
    CONFIG,
    NORMALIZER,
    TOKENIZER,
    UNNORMALIZER,
    WEIGHTS,
    Apply,
    Rng,
    edit,
    in_config,
    in_stats,
    in_step,
    in_weights,
    inserted,
    step,
)
from drawn_checkpoints import Raw, one_of
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Change:
    """apply: to a pretrained_model folder. says: None if it must be accepted, else what a refusal
    says. may_pass: it may also be accepted. is_lerobots: LeRobot's copy gets it too.
    """

    name: str
    apply: Apply
    says: str | None = None
    may_pass: bool = False
    is_lerobots: bool = True


NETWORK = {  # what decides the weights' shapes, or what a file cannot lack
    *("hidden_dim", "num_layers", "num_heads", "timestep_embed_dim", "n_obs_steps", "horizon"),
    *("n_action_steps", "vision_encoder_name", "text_encoder_name", "input_features", "type"),
    *("output_features", "use_separate_rgb_encoder_per_camera", "use_positional_encoding"),
    *("use_rope", "image_resize_shape", "image_crop_shape", "drop_n_last_frames"),
}


def without_fields(rng: Rng, folder: Path) -> None:
    """An older LeRobot did not know them, so they mean today's default."""
    raw = json.loads((folder / CONFIG).read_text())
    free = [name for name in raw if name not in NETWORK | {"num_inference_steps", "device"}]
    for name in rng.permutation(free)[: rng.integers(1, 8)].tolist():
        del raw[name]
    (folder / CONFIG).write_text(json.dumps(raw))


def reordered_fields(rng: Rng, folder: Path) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({k: raw[k] for k in rng.permutation(list(raw))}))


def other_camera_order(rng: Rng, folder: Path) -> None:
    def change(raw: Raw) -> None:
        features = raw["input_features"]
        raw["input_features"] = {k: features[k] for k in rng.permutation(list(features)).tolist()}

    edit(folder, CONFIG, change)


def more_inputs(rng: Rng, folder: Path) -> None:
    """What a robot gives and no network reads."""
    key, kind = one_of(rng, ("observation.effort", "STATE"), ("observation.goal", "ENV"),
                       ("observation.words", "LANGUAGE"))  # fmt: skip
    feature = {"type": kind, "shape": [2]}
    edit(folder, CONFIG, lambda raw: raw["input_features"].update({key: feature}))
    if rng.random() < 0.5:
        edit(
            folder,
            BEFORE,
            lambda raw: step(raw, NORMALIZER)["config"]["features"].update({key: feature}),
        )


OFF: tuple[Raw, ...] = ({"rtc_config": None}, {"compile_model": False}, {"lora": {}},
                        {"gradient_checkpointing": False, "freeze_text": None},
                        {"image_keys_order": []}, {"resume_from": ""})  # fmt: skip
ON: tuple[Raw, ...] = ({"use_film": True}, {"condition_on_depth": 1}, {"rtc_config": {"a": 1}},
                       {"attention": "gqa"})  # fmt: skip
ELSEWHERE: tuple[Raw, ...] = (
    {"push_to_hub": True, "repo_id": "me/policy", "tags": ["x"], "license": "apache-2.0"},
    {"pretrained_path": "lerobot/base", "private": True},
    {"device": "cuda"},
    {"device": "mps"},
    {"device": None},
    {"use_amp": True},
    {"optimizer_lr": 1, "scheduler_name": "linear", "dropout": 0.0},
    {"tags": None, "license": None, "use_peft": False},
    {"pretrained_revision": "main"},
)
OF_OTHERS: tuple[Raw, ...] = ({"type": "act"}, {"type": "diffusion"}, {"type": "smolvla"},
                              {"type": None})  # fmt: skip
INVALID: tuple[Raw, ...] = ({"horizon": 0}, {"num_heads": 3}, {"objective": "consistency"},
                            {"num_inference_steps": 0}, {"tokenizer_max_length": 512},
                            {"vision_encoder_name": "google/siglip"}, {"dropout": "much"},
                            {"input_features": None}, {"input_features": []},
                            {"output_features": {}}, {"input_features": {}, "output_features": {}},
                            {"n_obs_steps": True}, {"horizon": 12.5},
                            {"image_crop_shape": [0, 3]}, {"beta_schedule": 3})  # fmt: skip


def sharded(rng: Rng, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    names, parts = list(weights), int(rng.integers(2, 4))
    (folder / WEIGHTS).unlink()
    for i in range(parts):
        place = folder / f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        save_file({name: weights[name] for name in names[i::parts]}, place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def adapter(rng: Rng, folder: Path) -> None:
    raw = {"peft_type": one_of(rng, "LORA", "MISS"), "base_model_name_or_path": one_of(rng, "me/b",
           None)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")


def merged_adapter(rng: Rng, folder: Path) -> None:
    """The whole weights beside what is left of an adapter."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    in_config({"use_peft": False}, {"use_peft": True})(rng, folder)


def more_files(rng: Rng, folder: Path) -> None:
    for name in ("README.md", "train_config.json", ".gitattributes", "events.out.1", "x.png"):
        if rng.random() < 0.5:
            (folder / name).write_text("not { json")
    (folder / one_of(rng, "training_state", ".cache", "clip", "logs")).mkdir(exist_ok=True)


def lost_file(rng: Rng, folder: Path) -> None:
    one_of(rng, *[path for path in sorted(folder.iterdir()) if path.is_file()]).unlink()


def cut_file(rng: Rng, folder: Path) -> None:
    """A copy that broke off."""
    path = one_of(rng, *[path for path in sorted(folder.iterdir()) if path.is_file()])
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data) - 1)])


JUNK = (
    None,
    5,
    -1,
    0.5,
    1e308,
    True,
    "",
    "x",
    [],
    {},
    [1],
    {"a": 1},
    ["a"],
    [[]],
    1 << 70,
    "\u0000",
)


def junk(rng: Rng, folder: Path) -> None:
    """One value of a JSON file, or one key, is something else."""
    file = one_of(rng, CONFIG, BEFORE, AFTER)
    raw = json.loads((folder / file).read_text())
    places = list(_places(raw))
    holder, key = places[rng.integers(len(places))]
    if isinstance(holder, dict) and rng.random() < 0.2:
        holder[one_of(rng, "x", "", "type")] = holder.pop(key)
    else:
        holder[key] = one_of(rng, *JUNK)
    (folder / file).write_text(json.dumps(raw))


def _places(raw: Any) -> Iterator[tuple[Any, Any]]:
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ():
        yield raw, key
        yield from _places(raw[key])


STAT = r"statistic|is missing|has shape|contains NaN|is below"
LIBERTIES = (  # accepted, and the same chunk
    Change("an older LeRobot's config", without_fields),
    Change("fields in another order", reordered_fields),
    Change("cameras in another order", other_camera_order),
    Change("more inputs", more_inputs),
    Change("where it is stored and published", in_config(*ELSEWHERE)),
    Change("renamed, with statistics", steps.renamed(True)),
    Change("renamed, without statistics", steps.renamed(False)),
    Change("cameras swapped", steps.swapped),
    Change("words of another CLIP", steps.words_of_another_clip),
    Change("another name of a state file", steps.state_file_renamed),
    Change("one state file for both", steps.one_state_file),
    Change("steps in another order", steps.steps_moved),
    Change("other modes in the steps", steps.modes),
    Change("neutral steps before", inserted(BEFORE, *steps.NEUTRAL)),
    Change("neutral steps after", inserted(AFTER, *steps.NEUTRAL)),
    Change("identity", inserted(BEFORE, ("lerobot.processor.pipeline.IdentityProcessorStep", {}),
                                key="class")),
    Change("neutral switch", inserted(BEFORE, ("relative_actions_processor", {"enabled": False}))),
    Change("words cut earlier", in_step(BEFORE, TOKENIZER, {"max_length": 12})),
    Change("words not padded", in_step(BEFORE, TOKENIZER, {"padding": "longest"})),
    Change("statistics of another type", in_stats(tensors.cast)),
    Change("more statistics", in_stats(tensors.more_statistics)),
    Change("colours of another shape", in_stats(tensors.flat_colours)),
    Change("a camera without statistics", in_stats(tensors.no_camera_statistics)),
    Change("weights of another type", in_weights(tensors.cast)),
    Change("more files", more_files),
    Change("words beside the policy", steps.words_beside, is_lerobots=False),
    Change("off in a newer LeRobot", in_config(*OFF), is_lerobots=False),
    Change("weights with a prefix", in_weights(tensors.prefixed), is_lerobots=False),
    Change("weights of a wrapper inside", in_weights(tensors.wrapped_inside), is_lerobots=False),
)  # fmt: skip
FAULTS = (
    Change("on in a newer LeRobot", in_config(*ON), "newer LeRobot"),
    Change("quantiles", steps.quantiles, "must be one of MIN_MAX"),
    Change("a crop that does not fit", in_config({"image_crop_shape": [900, 900]}),
           "larger than the frames", may_pass=True),
    Change("one name for two", steps.one_name_for_two, "both renamed|is renamed to",
           may_pass=True),
    Change("another policy", in_config(*OF_OTHERS), "supports only multi_task_dit"),
    Change("invalid values", in_config(*INVALID), "config.json|must|normal", may_pass=True),
    Change("unknown steps before", inserted(BEFORE, *steps.UNKNOWN), "not a step that mtdit knows"),
    Change("unknown steps after", inserted(AFTER, *steps.UNKNOWN), "not a step that mtdit knows"),
    Change("relative actions", inserted(BEFORE, *steps.RELATIVE), "relative to the position"),
    Change("half precision", in_step(BEFORE, "device_processor", {"float_dtype": "float16"},
                                     {"float_dtype": "bfloat16"}), "computes in"),
    Change("another eps", in_step(BEFORE, NORMALIZER, {"eps": 1e-3}), "has eps"),
    Change("undone by another mode", in_step(AFTER, UNNORMALIZER, {"norm_map": {}},
           {"norm_map": {"ACTION": "MEAN_STD"}}), "undoes", may_pass=True),
    Change("other words", in_step(BEFORE, TOKENIZER, *steps.WORDS_DIFFER),
           "instruction|words|padding"),
    Change("settings of a newer step", in_step(BEFORE, NORMALIZER, *steps.NEWER),
           "has the setting"),
    Change("a step on the wrong side", inserted(AFTER, *steps.WRONG_SIDE), "wrong side"),
    Change("names changed late", steps.renamed_late, "renames after the normalisation"),
    Change("a step twice", steps.twice, "comes after another"),
    Change("no normaliser", steps.step_removed(BEFORE, NORMALIZER), "file of statistics"),
    Change("no words", steps.step_removed(BEFORE, TOKENIZER), "gets no instruction"),
    Change("no unnormaliser", steps.step_removed(AFTER, UNNORMALIZER), "file of statistics"),
    Change("seldom features", steps.seldom_features, "normalises", may_pass=True),
    Change("a statistic less", in_stats(tensors.one_less), STAT, may_pass=True),
    Change("a statistic's shape", in_stats(tensors.other_shape), STAT, may_pass=True),
    Change("a statistic that is no number", in_stats(tensors.no_number), STAT, may_pass=True),
    Change("a range turned round", in_stats(tensors.turned_round), STAT, may_pass=True),
    Change("other actions", in_stats(tensors.other_actions, AFTER), "different statistics",
           may_pass=True),
    Change("damaged weights", in_weights(tensors.damaged), "does not match|NaN|twice|weights"),
    Change("an adapter not merged", in_weights(tensors.unmerged), "before the merge"),
    Change("weights in parts", sharded, "save_pretrained"),
    Change("an adapter", adapter, "merge it first"),
    Change("an adapter merged", merged_adapter, "merge it first", may_pass=True),
    Change("odd keys", in_step(BEFORE, NORMALIZER, {"normalize_observation_keys": 5}),
           "normalize_observation_keys"),
    Change("a lost file", lost_file, "", may_pass=True),
    Change("a file that broke off", cut_file, "", may_pass=True),
    Change("junk", junk, "", may_pass=True),
)  # fmt: skip
