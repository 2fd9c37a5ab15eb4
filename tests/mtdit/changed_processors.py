"""What happens to the processors of a saved policy: steps, their order, settings and names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from checkpoint_files import (
    AFTER,
    BEFORE,
    CONFIG,
    NORMALIZER,
    RENAME,
    TOKENIZER,
    UNNORMALIZER,
    WEIGHTS,
    Apply,
    Rng,
    edit,
    in_config,
    in_stats,
    in_step,
    step,
)
from drawn_checkpoints import IMAGES, STATE, Raw, one_of


def renamed(with_stats: bool) -> Apply:
    """Trained with a rename_map: the files have the policy's names, the robot has its own."""

    def apply(rng: Rng, folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        cameras = [key for key in raw["input_features"] if key.startswith(IMAGES)]
        chosen = rng.permutation(cameras)[: rng.integers(len(cameras) + 1)].tolist()
        names = {key: f"{IMAGES}camera{rng.integers(1 << 30)}" for key in chosen}
        for file in (CONFIG, BEFORE, AFTER):
            text = (folder / file).read_text()
            for old, new in names.items():
                text = text.replace(json.dumps(old), json.dumps(new))
            (folder / file).write_text(text)
        spare = {"observation.images.unused": "observation.images.spare"}
        more = one_of(rng, {}, spare, {"observation.joints": STATE})
        in_step(BEFORE, RENAME, {"rename_map": {**names, **more}})(rng, folder)
        if with_stats:
            in_stats(
                lambda _, stats: {
                    names.get(k.rpartition(".")[0], k.rpartition(".")[0])
                    + "."
                    + k.split(".")[-1]: v
                    for k, v in stats.items()
                }
            )(rng, folder)

    return apply


def swapped(rng: Rng, folder: Path) -> None:
    """A rename_map that gives two cameras each other's name, or one the name of another."""
    features = json.loads((folder / CONFIG).read_text())["input_features"]
    cameras = rng.permutation([key for key in features if key.startswith(IMAGES)]).tolist()
    names = dict(zip(cameras, cameras[1:] + cameras[:1], strict=True))
    in_step(BEFORE, RENAME, {"rename_map": names})(rng, folder)


def one_name_for_two(rng: Rng, folder: Path) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    cameras = [key for key in raw["input_features"] if key.startswith(IMAGES)]
    one, *others = rng.permutation([*cameras, f"{IMAGES}a", f"{IMAGES}b"]).tolist()
    in_step(BEFORE, RENAME, {"rename_map": {one: others[0]}}, {"rename_map": dict.fromkeys(
        others, one)})(rng, folder)  # fmt: skip


def words_of_another_clip(rng: Rng, folder: Path) -> None:
    """The tokenizer is that of another folder than the text encoder's."""
    place = Path(json.loads((folder / CONFIG).read_text())["text_encoder_name"])
    others = sorted(path for path in place.parent.iterdir() if path != place)
    in_step(BEFORE, TOKENIZER, {"tokenizer_name": str(one_of(rng, *others))})(rng, folder)


def words_beside(rng: Rng, folder: Path) -> None:
    """The tokenizer is in the checkpoint, as a newer LeRobot saves it."""

    def change(raw: Raw) -> None:
        found = [s["config"] for s in raw["steps"] if s.get("registry_name") == TOKENIZER]
        settings = found[0] if found else {}
        place = Path(str(settings.get("tokenizer_name", "none")))
        if place.is_dir():
            shutil.copytree(place, folder / "tokenizer", ignore=lambda *_: {WEIGHTS, CONFIG})
            settings["tokenizer_name"] = "tokenizer"

    edit(folder, BEFORE, change)


def quantiles(rng: Rng, folder: Path) -> None:
    changed = {"VISUAL": "MEAN_STD", "STATE": "QUANTILES", "ACTION": "QUANTILE10"}
    in_step(BEFORE, NORMALIZER, {"norm_map": changed})(rng, folder)
    in_step(AFTER, UNNORMALIZER, {"norm_map": changed})(rng, folder)
    if rng.random() < 0.5:
        in_config({"normalization_mapping": changed})(rng, folder)


def state_file_renamed(rng: Rng, folder: Path) -> None:
    file, name = one_of(rng, (BEFORE, NORMALIZER), (AFTER, UNNORMALIZER))
    new = one_of(rng, "stats.safetensors", f"a{rng.integers(99)}.safetensors", "preprocessor_9.bin")

    def change(raw: Raw) -> None:
        shutil.copy(folder / step(raw, name)["state_file"], folder / f"{file[7:9]}{new}")
        step(raw, name)["state_file"] = f"{file[7:9]}{new}"

    edit(folder, file, change)


def one_state_file(rng: Rng, folder: Path) -> None:
    """Both processors have the same statistics, so one file is enough."""
    name = step(json.loads((folder / BEFORE).read_text()), NORMALIZER)["state_file"]
    edit(folder, AFTER, lambda raw: step(raw, UNNORMALIZER).update(state_file=name))


def steps_moved(rng: Rng, folder: Path) -> None:
    """The steps in another order; those first that LeRobot's others need."""
    edit(folder, AFTER, lambda raw: raw["steps"].reverse())

    def change(raw: Raw) -> None:
        first = [
            s for s in raw["steps"] if s.get("registry_name") in (RENAME, "to_batch_processor")
        ]
        rest = [s for s in raw["steps"] if s not in first]
        raw["steps"] = first + [rest[i] for i in rng.permutation(len(rest))]

    edit(folder, BEFORE, change)


def step_removed(file: str, *names: str) -> Apply:
    def apply(rng: Rng, folder: Path) -> None:
        name = one_of(rng, *names)
        edit(folder, file, lambda raw: raw["steps"].remove(step(raw, name)))

    return apply


def modes(rng: Rng, folder: Path) -> None:
    """Other modes in the processors than in config.json: the processors do the work."""
    chosen = {kind: one_of(rng, "MIN_MAX", "MEAN_STD", "IDENTITY")
              for kind in ("VISUAL", "STATE", "ACTION", "ENV")}  # fmt: skip
    in_step(BEFORE, NORMALIZER, {"norm_map": chosen})(rng, folder)
    in_step(AFTER, UNNORMALIZER, {"norm_map": chosen})(rng, folder)


def seldom_features(rng: Rng, folder: Path) -> None:
    """The normaliser lists a feature under another type, or not at all, or only some are taken."""

    def change(raw: Raw) -> None:
        config = step(raw, NORMALIZER)["config"]
        key = str(rng.choice(list(config["features"])))
        kind = rng.integers(3)
        if kind == 0:
            config["features"][key]["type"] = one_of(rng, "STATE", "ENV", "VISUAL")
        elif kind == 1:
            del config["features"][key]
        else:
            config["normalize_observation_keys"] = [k for k in config["features"] if k != key]

    edit(folder, BEFORE, change)


NEUTRAL: tuple[tuple[str, Raw], ...] = (
    ("to_batch_processor", {}),
    ("device_processor", {"device": "cuda", "float_dtype": None}),
    ("device_processor", {"float_dtype": "float32"}),
)
UNKNOWN: tuple[tuple[str, Raw], ...] = (
    ("smolvla_new_line_processor", {}),
    ("map_tensor_to_delta_action_dict", {"motion_scale": 0.1}),
    ("action_tokenizer_processor", {"action_tokenizer_name": "physical-intelligence/fast"}),
    ("my_own_step", {"gain": 2}),
    ("gym_hil_adapter_processor", {}),
)
RELATIVE: tuple[tuple[str, Raw], ...] = (
    ("relative_actions_processor", {"enabled": True}),
    ("relative_actions_processor", {"enabled": True, "exclude_joints": ["gripper"]}),
)
WORDS_DIFFER: tuple[Raw, ...] = ({"task_key": "prompt"}, {"padding_side": "left"},
                                 {"tokenizer_name": "google/paligemma"},
                                 {"tokenizer_name": None}, {"padding": "do_not_pad"})  # fmt: skip


NEWER: tuple[Raw, ...] = ({"clip_to_range": True}, {"stats": {"action": {}}}, {"quantiles": [1]})
WRONG_SIDE: tuple[tuple[str, Raw], ...] = (
    (RENAME, {"rename_map": {}}),
    (TOKENIZER, {"tokenizer_name": "openai/clip-vit-base-patch16"}),
)


def renamed_late(rng: Rng, folder: Path) -> None:
    """The names are changed after the normalisation, which looks for the policy's names."""
    renamed(with_stats=True)(rng, folder)
    in_step(BEFORE, RENAME, {"rename_map": {"observation.a": "observation.b"}})(rng, folder)

    def change(raw: Raw) -> None:
        rename = step(raw, RENAME)
        raw["steps"] = [s for s in raw["steps"] if s is not rename] + [rename]

    edit(folder, BEFORE, change)


def twice(rng: Rng, folder: Path) -> None:
    def change(raw: Raw) -> None:
        name = one_of(rng, NORMALIZER, TOKENIZER)
        raw["steps"].append(json.loads(json.dumps(step(raw, name))))

    edit(folder, BEFORE, change)
