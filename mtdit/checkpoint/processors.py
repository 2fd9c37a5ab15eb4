"""What LeRobot does around a policy: the steps of policy_preprocessor.json and
policy_postprocessor.json.

Every step is applied here (its settings end in the policy's configuration, its statistics or its
rename_map), is known to change nothing, or is refused by name: a step that is passed over would
make a bundle act differently from the policy. Source: LeRobot `processor/*.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtdit.checkpoint.names import POSTPROCESSOR, PREPROCESSOR
from mtdit.checkpoint.rename_map import RenameMap
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit.stats import EPS
from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.files import read_json

RENAME, TOKENIZER = "rename_observations_processor", "tokenizer_processor"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
IDENTITY = "lerobot.processor.pipeline.IdentityProcessorStep"  # LeRobot does not register it
_STATISTICS = {"eps", "features", "norm_map", "normalize_observation_keys"}
SETTINGS: dict[str, set[str]] = {  # step that mtdit knows -> the settings that mtdit knows
    RENAME: {"rename_map"},
    "to_batch_processor": set(),
    TOKENIZER: {
        *("tokenizer_name", "max_length", "padding", "padding_side", "truncation", "task_key")
    },
    "device_processor": {"device", "float_dtype"},
    NORMALIZER: _STATISTICS,
    UNNORMALIZER: _STATISTICS,
    "relative_actions_processor": {"enabled", "exclude_joints", "action_names"},
    "absolute_actions_processor": {"enabled"},
    IDENTITY: set(),
}
NOT_AFTER = (RENAME, TOKENIZER, NORMALIZER)  # have no meaning for an action
FLOAT32 = (None, "float32", "float")
PADDING = {"max_length": 512, "padding": "max_length", "padding_side": "right", "truncation": True}


@dataclass(frozen=True)
class Processors:
    """The settings of a checkpoint's processors.

    normalizer, unnormalizer: the files of their statistics. rename_map: name on the robot -> name
    in the policy. tokenizer: a folder or a Hub name; "" if it is beside the policy or the text
    encoder's. fields: fields of the policy's config, as the steps set them.
    """

    normalizer: Path
    unnormalizer: Path
    rename_map: RenameMap
    tokenizer: str
    fields: Mapping[str, Any]

    def applied(self, config: PolicyConfig, source: str) -> PolicyConfig:
        """The config with the fields that the processors set. UserError for an invalid value."""
        try:
            return replace(config, **self.fields)
        except UserError as error:
            raise UserError(f"{source}: {str(error)[:300]}") from None


@dataclass(frozen=True)
class Step:
    """One step of a processor file."""

    file: Path
    number: int
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    state_file: Any = None

    def refused(self, reason: str) -> UserError:
        return UserError(
            f"{self.file}: step {self.number}, {self.name}, {reason}, which mtdit does not do: "
            "a bundle would act differently; run this policy with `lerobot-rollout`, or train one "
            "without it"
        )


def read_processors(folder: Path, config: PolicyConfig) -> Processors:
    """Reads and judges both processor files of a pretrained_model folder.

    UserError names the first step that mtdit can neither apply nor leave out.
    """
    before, after = _read_steps(folder / PREPROCESSOR), _read_steps(folder / POSTPROCESSOR)
    normalizer, unnormalizer = _one(before, NORMALIZER), _one(after, UNNORMALIZER)
    statistics = _state_file(before, normalizer, folder / PREPROCESSOR)
    undone = _state_file(after, unnormalizer, folder / POSTPROCESSOR)
    for step in (*before, *after):
        _check_settings(step)
    _check_order(before, after)
    assert normalizer is not None
    assert unnormalizer is not None
    modes = _modes(normalizer, unnormalizer, config)
    tokenizer = _one(before, TOKENIZER)
    if tokenizer is None:
        raise UserError(
            f"{folder / PREPROCESSOR} has no step {TOKENIZER}, so its policy gets no instruction; "
            "save the policy together with its processors"
        )
    rename = _one(before, RENAME)
    rename_map = {} if rename is None else _rename_map(rename)
    _check_features(normalizer, config, modes)
    fields = {**modes, **_text_fields(tokenizer, config)}
    words = tokenizer.settings["tokenizer_name"]
    own = words == config.text_encoder_name or _is_beside(tokenizer, words)
    return Processors(statistics, undone, rename_map, "" if own else words, fields)


def _read_steps(path: Path) -> list[Step]:
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no {path.name}, which names the file of statistics; "
            "copy the whole checkpoint folder"
        )
    raw = read_json(path)
    listed = raw.get("steps") if isinstance(raw, dict) else None
    found = listed if isinstance(listed, list) else []
    return [_read_step(path, number, step) for number, step in enumerate(found)]


def _read_step(path: Path, number: int, raw: Any) -> Step:
    known = raw if isinstance(raw, dict) else {}
    name, settings = known.get("registry_name", known.get("class")), known.get("config", {})
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise UserError(f"{path}: step {number} has no name or no settings; copy the file again")
    return Step(path, number, name[:100], settings, known.get("state_file"))


def _one(steps: Sequence[Step], name: str) -> Step | None:
    """The step of this name; None if there is none. UserError if there are two."""
    found = [step for step in steps if step.name == name]
    if len(found) > 1:
        raise found[1].refused(f"comes after another {name}")
    return found[0] if found else None


def _state_file(steps: Sequence[Step], step: Step | None, path: Path) -> Path:
    """The file of statistics that a step names; it is in the folder of the processor file."""
    if step is None or step.state_file is None:
        unknown = [one for one in steps if one.name not in SETTINGS]
        if unknown:  # it may be what normalises
            raise unknown[0].refused("is not a step that mtdit knows")
        kind = "normalizer" if path.name == PREPROCESSOR else "unnormalizer"
        raise UserError(
            f"{path} does not name the {kind}'s file of statistics; "
            "save the policy together with its processors"
        )
    name = step.state_file
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or not os.path.isfile(path.parent / name)
    ):
        raise UserError(
            f"{path} names {str(name)[:80]!r} as file of statistics, but there is no such file "
            "in that folder; copy the whole checkpoint folder"
        )
    return path.parent / name


def _check_settings(step: Step) -> None:
    """UserError for a step, or a setting of a step, that would change what the policy does."""
    if step.name not in SETTINGS:
        raise step.refused("is not a step that mtdit knows")
    for name in step.settings:
        if name not in SETTINGS[step.name]:
            raise step.refused(f"has the setting {name[:60]!r}")
    if step.settings.get("float_dtype") not in FLOAT32:
        raise step.refused(f"computes in {step.settings['float_dtype']}")
    if step.settings.get("enabled"):
        raise step.refused("makes actions relative to the position")
    if "normal" in step.name and step.settings.get("eps", EPS) != EPS:
        raise step.refused(f"has eps {step.settings['eps']!r} instead of {EPS}")


def _check_order(before: Sequence[Step], after: Sequence[Step]) -> None:
    """UserError for a step on the wrong side of the policy, and when names are changed after the
    normalisation, which looks for the policy's names.
    """
    for steps, wrong in ((before, (UNNORMALIZER,)), (after, NOT_AFTER)):
        for step in steps:
            if step.name in wrong:
                raise step.refused("is on the wrong side of the policy")
    places = {step.name: step.number for step in before}
    rename = _one(before, RENAME)
    if rename and rename.settings.get("rename_map") and rename.number > places[NORMALIZER]:
        raise rename.refused("renames after the normalisation")


def _modes(normalizer: Step, unnormalizer: Step, config: PolicyConfig) -> dict[str, Any]:
    """`normalization_mapping` as the two steps have it, if it is not the config's."""
    maps = [step.settings.get("norm_map", {}) for step in (normalizer, unnormalizer)]
    for step, modes in zip((normalizer, unnormalizer), maps, strict=True):
        if not isinstance(modes, dict):
            raise UserError(f"{step.file}: norm_map must map feature types to modes, got {modes!r}")
    observed, acted = maps
    if observed.get("ACTION", "IDENTITY") != acted.get("ACTION", "IDENTITY"):
        raise unnormalizer.refused(
            f"undoes {acted.get('ACTION')} of actions, but they are normalised by "
            f"{observed.get('ACTION')}"
        )
    own = config.normalization_mapping
    types = {f.type for f in (*config.input_features.values(), *config.output_features.values())}
    same = all(own.get(t, "IDENTITY") == observed.get(t, "IDENTITY") for t in types)
    return {} if same else {"normalization_mapping": dict(observed)}


def _check_features(step: Step, config: PolicyConfig, fields: Mapping[str, Any]) -> None:
    """UserError when the normaliser treats positions or a camera in another way than their type
    says. What else the robot gives, the network does not read.
    """
    modes = fields.get("normalization_mapping", config.normalization_mapping)
    listed = step.settings.get("features", {})
    only = step.settings.get("normalize_observation_keys")
    if only is not None and not isinstance(only, list):
        raise step.refused(f"has normalize_observation_keys {only!r:.60}")
    for key, feature in config.input_features.items():
        if key != STATE and feature.type != "VISUAL":
            continue
        entry = listed.get(key) if isinstance(listed, dict) else None
        kind = entry.get("type") if isinstance(entry, dict) else None
        taken = only is None or key in only
        mode = modes.get(str(kind), "IDENTITY") if taken else "IDENTITY"
        if mode != modes.get(feature.type, "IDENTITY"):
            raise step.refused(f"normalises {key} by {mode}, not as {feature.type}")


def _text_fields(step: Step, config: PolicyConfig) -> dict[str, Any]:
    """The fields of the config that say how an instruction becomes tokens, as the step has them."""
    if step.settings.get("task_key", "task") != "task":
        raise step.refused(f"reads the instruction from {step.settings['task_key']!r}")
    name = step.settings.get("tokenizer_name")
    if not isinstance(name, str) or not (
        name == config.text_encoder_name or "clip" in name.lower() or _is_beside(step, name)
    ):
        raise step.refused(f"takes the words apart with {name!r}, not with CLIP's tokenizer")
    return {f"tokenizer_{n}": step.settings.get(n, standard) for n, standard in PADDING.items()}


def _is_beside(step: Step, name: str) -> bool:
    """Whether this is a folder of the checkpoint: where a newer LeRobot saves the tokenizer."""
    return Path(name).name == name and (step.file.parent / name).is_dir()


def _rename_map(step: Step) -> RenameMap:
    names = step.settings.get("rename_map", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{step.file}: rename_map must map names to names, got {names!r}")
    return names


def same_actions(
    before: Mapping[str, Any], after: Mapping[str, Any], needed: Sequence[str]
) -> bool:
    """Whether the statistics that normalise actions are those that undo it."""
    ours, theirs = before.get(ACTION, {}), after.get(ACTION, {})
    return all(
        np.array_equal(ours[name], theirs[name], equal_nan=True)
        for name in needed
        if name in ours and name in theirs
    )
