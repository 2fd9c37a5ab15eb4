"""Reads and writes LeRobot's config.json of a multi_task_dit policy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mtdit.config import Feature, feature_shape
from mtdit.policies.multi_task_dit.config import PolicyConfig
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json

# Keys of LeRobot's base class that say where a policy is stored or published: accepted, ignored.
_UNUSED_KEYS = frozenset(
    [
        "use_peft",
        "push_to_hub",
        "repo_id",
        "private",
        "tags",
        "license",
        "pretrained_path",
        "pretrained_revision",
    ]
)


def policy_config_from_json(path: Path) -> PolicyConfig:
    """Reads LeRobot's config.json. UserError: missing, damaged, invalid or of another policy."""
    raw = read_json(path)
    check_policy_type(raw, str(path))
    newer = fields_of_newer_lerobot(raw, str(path))
    own = {k: v for k, v in raw.items() if k != "type" and k not in newer}
    return policy_config_from_dict(own, source=str(path))


def fields_of_newer_lerobot(raw: Mapping[str, Any], source: str) -> list[str]:
    """The fields that a newer LeRobot has added and left off: null, false or empty.

    UserError for one that is on: it may change what the policy computes.
    """
    known = {f.name for f in fields(PolicyConfig)} | _UNUSED_KEYS | {"type"}
    unknown = sorted(set(raw) - known)
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near:  # more likely a typing error than a new field
            raise UserError(f"{source}: unknown field {name!r}; did you mean {near[0]!r}?")
        if raw[name] not in (None, False, "", [], {}):
            raise UserError(
                f"{source}: unknown field {name!r} = {repr(raw[name])[:60]}; it is of a newer "
                "LeRobot than mtdit knows and may change what the policy computes: run the policy "
                "with `lerobot-rollout`, or delete the field if it does not"
            )
    return unknown


def check_policy_type(raw: Any, source: str) -> None:
    """UserError when parsed JSON is not LeRobot's config.json of a multi_task_dit policy."""
    if not isinstance(raw, dict) or raw.get("type") != "multi_task_dit":
        raise UserError(
            f"{source} describes {_other_policy(raw)}; mtdit supports only multi_task_dit: "
            "train such a policy with `mtdit train`"
        )


def _other_policy(raw: Any) -> str:
    """What a config.json that is not of multi_task_dit describes."""
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind == "diffusion":
        return "a Diffusion Policy (ResNet + U-Net, type 'diffusion'), which is not supported yet"
    if kind is None and isinstance(raw, dict) and "model_type" in raw:
        return f"a transformers model ({raw['model_type']!r}), not a policy"
    if kind is None:
        return "no policy: it has no 'type'"
    return f"a policy of type {kind!r}, which is not supported"


def policy_config_from_dict(raw: Mapping[str, Any], source: str = "policy options") -> PolicyConfig:
    """LeRobot's JSON values -> PolicyConfig. UserError names the first unknown or invalid field."""
    known = {f.name: f for f in fields(PolicyConfig)}
    unknown = sorted(set(raw) - set(known) - _UNUSED_KEYS)
    if unknown:
        raise UserError(f"{source}: unknown field {unknown[0]!r}; {_hint(unknown[0], known)}")
    try:
        return PolicyConfig(**{k: _from_json(k, v) for k, v in raw.items() if k in known})
    except UserError as error:
        short = str(error)[:300]  # it may end in a value of any length
        raise UserError(f"{source}: {short}") from None


def _hint(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(sorted(known))}"


def policy_config_to_dict(config: PolicyConfig) -> dict[str, Any]:
    """The content of LeRobot's config.json, `type` first; MultiTaskDiTConfig parses it."""
    values = json.loads(json.dumps(asdict(config)))
    return {"type": "multi_task_dit", **values, "push_to_hub": False, "repo_id": None}


def _from_json(name: str, value: Any) -> Any:
    if name in ("input_features", "output_features"):
        try:
            return {
                k: Feature(f["type"], feature_shape(f["shape"]))
                for k, f in ({} if value is None else value).items()
            }
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{name} must map each key to {{type, shape}}, got {repr(value)[:80]}"
            ) from None
    return tuple(value) if isinstance(value, list) else value
