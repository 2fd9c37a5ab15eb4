"""Finds the checkpoint that a path means: a run, a checkpoint folder, or a Hub repo id."""

from __future__ import annotations

from pathlib import Path

from mtdit.checkpoint import adapters, brysonjones
from mtdit.checkpoint.names import CHECKPOINTS, CONFIG, LAST, PRETRAINED, WEIGHTS
from mtdit.hub import fetch, is_repo_id
from mtdit.policies.multi_task_dit.config_json import check_policy_type
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json


def find_pretrained(path: Path) -> Path:
    """Finds the pretrained_model folder for a path to it, to a checkpoint or to a run, or for a
    Hub repo id (then downloaded). UserError when there is none.
    """
    inside = (
        path,
        path / PRETRAINED,
        path / LAST / PRETRAINED,
        path / CHECKPOINTS / LAST / PRETRAINED,
    )
    for candidate in (*inside, *brysonjones.checkpoints(path)):
        if (candidate / CONFIG).is_file() and not (candidate / CHECKPOINTS).is_dir():
            return candidate
    if adapters.is_adapter(path):
        raise adapters.refusal(path)
    if path.is_file():
        raise UserError(
            f"{path} is a file: give its folder, {path.parent}, which must also contain {CONFIG}"
        )
    if (path / WEIGHTS).is_file():
        raise UserError(f"{path} has {WEIGHTS} but no {CONFIG}: copy the whole checkpoint folder")
    if not path.exists() and is_repo_id(path):
        return fetch(str(path), _check_config)
    return find_last_checkpoint(path) / PRETRAINED


def _check_config(path: Path) -> None:
    raw = read_json(path)
    if not brysonjones.is_config(raw):
        check_policy_type(raw, str(path))


def last_run(outputs: Path) -> Path:
    """The run below `outputs`, of mtdit or LeRobot, that saved last. UserError if there is none."""
    depths = ("*", "*/*", "*/*/*")  # train, demo/train, train/<date>/<time>_<job> of lerobot-train
    saved = [
        c
        for depth in depths
        for c in outputs.glob(f"{depth}/{CHECKPOINTS}/[0-9]*/{PRETRAINED}/{CONFIG}")
    ]
    if not saved:
        raise UserError(
            f"there is no training run in {outputs}: run `mtdit train` first, or give a checkpoint"
        )
    return max(saved, key=lambda config: config.stat().st_mtime).parents[3]


def find_last_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run, even without the `last` link. UserError if the run
    has none.
    """
    last = run / CHECKPOINTS / LAST
    if (last / PRETRAINED / CONFIG).is_file():
        return last.resolve()
    found = [c.parent.parent for c in run.glob(f"{CHECKPOINTS}/[0-9]*/{PRETRAINED}/{CONFIG}")]
    complete = [c for c in found if c.name.isdecimal()]
    if complete:
        return max(complete, key=lambda c: int(c.name))
    if not run.exists():
        raise UserError(
            f"there is no checkpoint at {run}, because the folder does not exist: check the path, "
            "or run `mtdit train` first"
        )
    raise UserError(
        f"there is no checkpoint in {run}: give a run, a checkpoint or a pretrained_model folder "
        "of `mtdit train`"
    )
