"""Changes one file of a saved policy: its config, a step of its processors, its statistics or its
weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn_checkpoints import Raw, one_of
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
RENAME, TOKENIZER = "rename_observations_processor", "tokenizer_processor"
Rng = np.random.Generator
Apply = Callable[[Rng, Path], None]


def edit(folder: Path, name: str, change: Callable[[Raw], Any]) -> None:
    raw = json.loads((folder / name).read_text())
    change(raw)
    (folder / name).write_text(json.dumps(raw))


def step(raw: Raw, name: str) -> Raw:
    found: Raw = next(s for s in raw["steps"] if s.get("registry_name") == name)
    return found


def state_file(folder: Path, file: str = BEFORE) -> Path:
    """Of the statistics that a processor file names."""
    name = NORMALIZER if file == BEFORE else UNNORMALIZER
    return folder / str(step(json.loads((folder / file).read_text()), name)["state_file"])


def in_config(*choices: Raw) -> Apply:
    return lambda rng, folder: edit(folder, CONFIG, lambda raw: raw.update(one_of(rng, *choices)))


def in_step(file: str, name: str, *choices: Raw) -> Apply:
    return lambda rng, folder: edit(
        folder, file, lambda raw: step(raw, name)["config"].update(one_of(rng, *choices))
    )


def inserted(file: str, *choices: tuple[str, Raw], key: str = "registry_name") -> Apply:
    """One more step, anywhere."""

    def apply(rng: Rng, folder: Path) -> None:
        name, config = one_of(rng, *choices)

        def change(raw: Raw) -> None:
            place = int(rng.integers(len(raw["steps"]) + 1))
            raw["steps"].insert(place, {key: name, "config": config})

        edit(folder, file, change)

    return apply


def in_weights(change: Callable[[Rng, dict[str, torch.Tensor]], dict[str, Any]]) -> Apply:
    def apply(rng: Rng, folder: Path) -> None:
        try:
            weights = change(rng, load_file(folder / WEIGHTS))
        except (FileNotFoundError, SafetensorError):  # lost or cut off before
            return
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS)

    return apply


def in_stats(change: Callable[[Rng, Raw], Raw], *files: str) -> Apply:
    """Of the statistics of both processors, or of one; the same change in each."""

    def apply(rng: Rng, folder: Path) -> None:
        seed = int(rng.integers(1 << 30))
        for path in {state_file(folder, file) for file in files or (BEFORE, AFTER)}:
            stats = change(np.random.default_rng(seed), load_file(path))
            save_file({k: v.contiguous() for k, v in stats.items()}, path)

    return apply
