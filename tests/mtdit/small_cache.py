"""A frame cache written by hand: what trainer tests train on without decoding anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtdit.data.cache_record import FORMAT

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TASKS = ("open the drawer", "close the drawer")
LENGTHS = (24, 31, 18, 22, 20, 26)  # of the episodes, which take the tasks in turn
CAMERAS = ("top", "wrist")


def write_cache(folder: Path, ruined: Sequence[int] = ()) -> Path:
    """Six episodes of two tasks, two cameras of 64 x 64. The actions of the rows `ruined` are not
    finite.
    """
    rng, rows = np.random.default_rng(0), sum(LENGTHS)
    state = np.concatenate([_motion(rng, n) for n in LENGTHS]).astype(np.float32)
    action = state + rng.normal(0, 0.1, state.shape).astype(np.float32)
    vectors = {"observation.state": state, "action": action}
    stats = {
        k: {"min": v.min(0), "max": v.max(0), "mean": v.mean(0), "std": v.std(0)}
        for k, v in vectors.items()
    }
    for camera in CAMERAS:
        stats[f"observation.images.{camera}"] = {
            n: np.full((3, 1, 1), 0.5) for n in ("mean", "std")
        }
    action[list(ruined)] = np.inf
    folder.mkdir(parents=True)
    task = np.repeat(np.arange(len(LENGTHS)) % len(TASKS), LENGTHS)
    arrays = {"state": state, "action": action, "task": task, "episode_ends": np.cumsum(LENGTHS)}
    pictures = {
        f"frames.{c}": rng.integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8) for c in CAMERAS
    }
    for name, values in {**arrays, **pictures}.items():
        np.save(folder / f"{name}.npy", values)
    listed = {
        k: {n: np.asarray(v, np.float32).tolist() for n, v in s.items()} for k, s in stats.items()
    }
    (folder / "stats.json").write_text(json.dumps(listed))
    (folder / "frames.json").write_text(json.dumps(_info()))
    return folder


def _motion(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.uniform(-40, 40, 6) + 20 * np.sin(np.arange(length)[:, None] / 9 + np.arange(6))


def _info() -> dict:
    keys = {c: f"observation.images.{c}" for c in CAMERAS}
    facts = {
        "dataset": "small",
        "fps": 10,
        "joints": list(JOINTS),
        "tasks": list(TASKS),
        "max_speed": [100.0] * 6,
        "robot_type": "so_follower",
    }
    vector = {"shape": [6]}
    inputs = {"observation.state": {"type": "STATE", **vector}}
    return {
        "facts": facts,
        "input_features": {
            **inputs,
            **{k: {"type": "VISUAL", "shape": [3, 64, 64]} for k in keys.values()},
        },
        "output_features": {"action": {"type": "ACTION", **vector}},
        "image_keys": keys,
        "format": FORMAT,
        "frames": {},
    }
