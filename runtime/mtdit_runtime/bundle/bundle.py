"""Opens a bundle: the folder of an exported policy.

A path in a manifest never leaves the folder, and nothing in a bundle is pickled.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtdit_robots.errors import UserError
from mtdit_robots.features import ACTION, STATE
from mtdit_runtime.bundle.checks import check_consistency, check_file, feature_width
from mtdit_runtime.bundle.manifest import (
    MANIFEST,
    STATS,
    SUFFIX,
    TASKS,
    Manifest,
    read_manifest,
)
from mtdit_runtime.files import read_arrays
from mtdit_runtime.normalize import Stats, load_stats


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle. Small arrays are read on first use.

    folder: where it is. manifest: what is in it: joints, cameras, fps, tasks, sampler, precision,
    graphs, and the checks that were made at export.
    """

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        return self.folder / name

    @cached_property
    def stats(self) -> dict[str, Stats]:
        """Feature name -> statistics, finite, one number per joint in the feature's own order.
        UserError when the file holds anything else.
        """
        path, m = self.path(STATS), self.manifest
        counts = {STATE: len(m.state_joints), ACTION: len(m.joints)}
        stats = load_stats(path)
        for name, found in stats.items():
            if found.low.shape != (count := (counts.get(name, 0),)):
                raise UserError(
                    f"{path}: {name} has shape {found.low.shape}, not {count}: "
                    "re-run `mtdit export`"
                )
            if not found.is_finite:
                raise UserError(
                    f"{path}: {name} holds NaN or infinite numbers: train on a dataset without them"
                )
        return stats

    @cached_property
    def task_features(self) -> dict[str, NDArray[np.float32]]:
        """Instruction -> text feature (P,) float32, for the tasks seen in training. UserError when
        the file is malformed or lists other tasks than the manifest.
        """
        path, arrays = self.path(TASKS), read_arrays(self.path(TASKS))
        tasks, features = (arrays.get(name, np.zeros(())) for name in ("tasks", "features"))
        if tasks.dtype.kind != "U" or tasks.ndim != 1:
            raise UserError(
                f"{path}: tasks are {tasks.dtype} {tasks.shape}, not a list of strings: "
                "re-run `mtdit export`"
            )
        names = list(map(str, tasks))
        wanted = (len(names), feature_width(self.manifest.graphs["text"].outputs))
        if names and (features.shape, features.dtype) != (wanted, np.float32):
            raise UserError(
                f"{path}: features are {features.dtype} {features.shape}, not float32 {wanted}: "
                "re-run `mtdit export`"
            )
        if set(names) != set(self.manifest.tasks):
            raise UserError(f"{path} lists other tasks than {MANIFEST}: re-run `mtdit export`")
        return dict(zip(names, features, strict=False))


def open_bundle(folder: Path, check_files: bool = True) -> Bundle:
    """Read and check a bundle, the folder NAME.mtdit that `mtdit export` writes. Its graphs are not
    opened here; `mtdit.load` does that. `check_files=False` skips the checksums, for code that has
    already opened it once.

    UserError when the folder does not exist or is not a bundle, when the manifest is
    malformed or has another schema version, and when a file is missing, changed, or outside the
    folder.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(_no_bundle(folder))
    manifest, digest = read_manifest(folder)
    check_consistency(manifest, folder)
    for name, checksum in manifest.files.items():
        check_file(folder, name, checksum, hashed=check_files)
    if manifest.digest != digest:
        raise UserError(
            f"{folder}/{MANIFEST} was changed after the export: "
            "copy the bundle again or re-run `mtdit export`"
        )
    return Bundle(folder, manifest)


def as_bundle(bundle: Bundle | Path | str) -> Bundle:
    """The bundle itself, or the one in this folder, opened and checked."""
    return bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))


def _no_bundle(folder: Path) -> str:
    if not folder.exists():
        names = (
            sorted(p.name for p in folder.parent.glob(f"*{SUFFIX}"))
            if folder.parent.is_dir()
            else []
        )
        near = difflib.get_close_matches(folder.name, names, n=1)
        hint = f"did you mean {folder.parent / near[0]}?" if near else "run `mtdit export` first"
        return f"no bundle at {folder}: {hint}"
    return (
        f"{folder} is not a bundle (it has no {MANIFEST}): "
        f"pass the *{SUFFIX} folder that `mtdit export` wrote"
    )


def save_task_features(path: Path, features: Mapping[str, NDArray[np.float32]]) -> None:
    """Write instruction -> feature (P,) as an npz file without pickle."""
    tasks = np.array(list(features), dtype=np.str_)
    np.savez(
        path,
        tasks=tasks,
        features=np.stack(list(features.values())) if features else np.zeros((0, 0), np.float32),
    )
