"""Replaces the result of an earlier command at --out, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Set
from pathlib import Path

from mtdit_robots.errors import UserError

# What a stage writes to --out, and the part that proves that an existing folder is such a result.
DATASET_PARTS, DATASET_PROOF = {"meta", "data", "videos", "images"}, "meta/info.json"
RUN_PROOF = "checkpoints"
RUN_CACHES = {
    ".lock", "clip-tiny", "frames", ".frames.part", ".frames.earlier.part", ".frames.lock",
    "train_log.jsonl", "tensorboard", "curves.png", ".curves.png.part", "wandb", "wandb_run.json",
}  # fmt: skip


def clear_output(
    out: Path,
    overwrite: bool,
    proof: str,
    parts: Set[str],
    caches: Set[str] = frozenset(),
    check: Callable[[], None] = lambda: None,
    kept: Set[str] = frozenset(),
) -> None:
    """Delete an earlier result in `out` if `overwrite` is set. UserError if it is not set, or if
    `out` is not an earlier result: it lacks `proof`, or holds more than `parts` and `caches`.

    A folder with nothing but `caches` is a run that never started: it is used as it is. check:
    called when `out` can be used, before the deletion; it may raise. kept: what is not deleted.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder: choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if not found or found <= caches:
        check()
        return
    if not overwrite:
        raise UserError(f"{out} exists: add --overwrite to replace it, or choose another --out")
    others = sorted(found - parts - caches)
    if others or not (out / proof).exists():
        why = f"contains {others[0]}" if others else f"has no {proof}"
        raise UserError(
            f"{out} {why}, so it is not a result of mtdit and stays: choose another --out"
        )
    if out.is_symlink():
        raise UserError(f"{out} is a link: give the folder it points to, or choose another --out")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(
            f"you are in {out}, so it cannot be replaced: leave it, or choose another --out"
        )
    check()
    for path in [path for path in out.iterdir() if path.name not in kept]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not any(out.iterdir()):
        out.rmdir()
