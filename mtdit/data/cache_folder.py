"""A frame cache on disk: a folder of .npy files that is brought up to date with its dataset.

States, actions, tasks, statistics and facts are read from the dataset at every start, frames are
decoded when they changed (`mtdit.data.cache_record`). A cache is a dataset by itself, which needs
neither the videos nor lerobot. Its files are never changed, only replaced, so a run that still
trains on them is not disturbed; runs that start in one folder wait for each other.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtdit.config import Feature
from mtdit.data.cache_record import (
    CACHE,
    FORMAT,
    Kept,
    Record,
    frames_file,
    kept_frames,
    new_record,
    source_file,
)
from mtdit.data.frame_cache import (
    ARRAYS,
    CacheInfo,
    FrameCache,
    OnProgress,
    Progress,
    StoredDataset,
)
from mtdit.data.frame_sources import Once
from mtdit.stats import facts_from_json
from mtdit_robots.errors import UserError
from mtdit_robots.files import new_folder
from mtdit_runtime.files import locked, read_json

STATS_FILE = "stats.json"
POLL_S = 0.3  # how often a run looks whether another has finished with the folder
Say = Callable[[str], None]


def open_cache(folder: Path) -> FrameCache:
    """Opens the folder of a cache. UserError when it is not complete, or of an older mtdit."""
    raw = read_json(folder / CACHE)
    if raw.get("format") != FORMAT:
        raise UserError(
            f"{folder} was written by an older mtdit, which did not check that each row has its "
            "own frame; give the dataset itself as --dataset, and its frames are decoded again"
        )
    features = {
        side: {k: Feature(f["type"], tuple(f["shape"])) for k, f in raw[side].items()}
        for side in ("input_features", "output_features")
    }
    info = CacheInfo(
        facts_from_json(folder / CACHE, raw["facts"], "remove it and train again"),
        **features,
        image_keys=raw["image_keys"],
        doubts=tuple(line for record in raw["frames"].values() for line in record["doubts"]),
    )
    try:
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ARRAYS}
        frames = {
            c: np.asarray(np.load(frames_file(folder, c), mmap_mode="r")) for c in info.image_keys
        }
        for camera, pictures in frames.items():
            if len(pictures) != len(arrays["state"]):
                raise ValueError(f"{len(pictures)} frames of {camera}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a complete frame cache ({error}); remove it and train again"
        ) from None
    stats = {
        k: {n: np.asarray(v, np.float32) for n, v in s.items()}
        for k, s in read_json(folder / STATS_FILE).items()
    }
    return FrameCache(folder, info, stats, frames, **arrays)


def current_cache(
    stored: StoredDataset, name: str, folder: Path, on_progress: OnProgress | None, say: Say
) -> FrameCache:
    """The cache in `folder`, after everything that differs from the dataset was written anew.

    name: what messages call the dataset. UserError when the folder holds something else, or when
    there is not enough space.
    """
    with _turn(folder, say):
        update = _Update.of(stored, kept_frames(folder))
        if not update.cameras and update.is_written(folder):
            return open_cache(folder)
        needed = stored.n_bytes(update.cameras)
        _check_folder(folder, needed)
        if update.cameras:
            say(decoding(name, needed, str(folder)))
        try:
            with new_folder(folder) as part:
                update.write(part, folder, on_progress)
        except OSError as error:
            raise UserError(
                f"the frame cache cannot be written to {folder} ({error.strerror or error}); "
                "choose another --cache-dir, or train with --frames video"
            ) from None
        return open_cache(folder)


def decoding(dataset: str, n_bytes: int, place: str) -> str:
    """The line before frames are decoded."""
    return f"decoding the frames of {dataset} once: {n_bytes / 1e6:.0f} MB in {place}"


@dataclass(frozen=True)
class _Update:
    """What a cache has to become: the dataset as it is now, and what of an existing cache stays."""

    stored: StoredDataset
    kept: Mapping[str, Kept]  # camera -> its frames in the existing cache
    records: Mapping[str, Record]  # camera -> its frames as they have to be
    source: Mapping[str, NDArray[np.int32]]  # camera -> (N,) number of the row's file
    cameras: Sequence[str]  # whose frames have to be written

    @classmethod
    def of(cls, stored: StoredDataset, kept: Mapping[str, Kept]) -> _Update:
        """UserError when frames are missing, claimed twice or not as the statistics say."""
        doubts = {c: stored.checked(c)[1] for c in stored.sources if c not in kept}
        records, source, changed = {}, {}, []
        for c, files in stored.sources.items():
            before = kept.get(c)
            record, source[c] = new_record(stored.dataset.root, stored.shape(c), files, before)
            if before is not None and before.fits(record, source[c]):
                doubts[c] = list(before.record.doubts)
            else:
                changed.append(c)
                doubts[c] = doubts[c] if c in doubts else stored.checked(c)[1]
            records[c] = replace(record, doubts=tuple(doubts[c]))
        return cls(stored, kept, records, source, changed)

    def is_written(self, folder: Path) -> bool:
        """Whether the folder holds these facts, arrays and records already."""
        try:
            arrays = {n: np.load(folder / f"{n}.npy") for n in ARRAYS}
            texts = [read_json(folder / name) for name in (CACHE, STATS_FILE)]
        except (UserError, OSError, ValueError):
            return False
        return texts == [_as_json(self._described()), _as_json(self._stats())] and all(
            np.array_equal(arrays[n], getattr(self.stored.dataset, n)) for n in ARRAYS
        )

    def write(self, part: Path, earlier: Path, on_progress: OnProgress | None) -> None:
        """Fill the folder `part`; frames that stay are linked from the folder `earlier`."""
        progress = Progress(len(self.stored.dataset.state) * len(self.cameras), on_progress)
        for name in ARRAYS:
            np.save(part / f"{name}.npy", getattr(self.stored.dataset, name))
        for camera in self.records:
            np.save(source_file(part, camera), self.source[camera])
            if camera in self.cameras:
                self._write_frames(part, camera, progress)
            else:
                _link(frames_file(earlier, camera), frames_file(part, camera))
        (part / STATS_FILE).write_text(json.dumps(self._stats()))
        (part / CACHE).write_text(json.dumps(self._described(), indent=2) + "\n")

    def _write_frames(self, part: Path, camera: str, progress: Progress) -> None:
        """Plain writes: on a full disk they raise an error; a memory map would kill the process."""
        once = Once(self.stored.dataset, camera)
        with frames_file(part, camera).open("wb") as file:
            shape = self.stored.shape(camera)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            for row, frame in self._frames(camera):
                once.mark(row)
                file.seek(start + row * frame.nbytes)
                file.write(frame.tobytes())
                progress.step()
        once.check_all()

    def _frames(self, camera: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Every (row, stored frame) of a camera, from the existing cache where its file is the
        same.
        """
        before, record = self.kept.get(camera), self.records[camera]
        for source, file in zip(self.stored.sources[camera], record.files, strict=True):
            rows = before.rows_of(file, record.shape) if before else None
            if before is not None and rows is not None:
                for row, old in zip(np.sort(source.rows).tolist(), rows.tolist(), strict=True):
                    yield row, before.frames[old]
            else:
                for row, frame in source.frames():
                    yield row, self.stored.finish(camera, frame)

    def _described(self) -> dict[str, Any]:
        """The content of frames.json."""
        info = asdict(self.stored.info())
        del info["doubts"]  # they are with each camera
        return {"format": FORMAT, **info, "frames": {c: asdict(r) for c, r in self.records.items()}}

    def _stats(self) -> dict[str, Any]:
        stats = self.stored.dataset.stats
        return {k: {n: v.tolist() for n, v in s.items()} for k, s in stats.items()}


def _as_json(value: Any) -> Any:
    """The value as it is read back from JSON, where a tuple becomes a list."""
    return json.loads(json.dumps(value))


def _link(old: Path, new: Path) -> None:
    """The same file under a second name; a copy where the disk has no links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


@contextmanager
def _turn(folder: Path, say: Say) -> Iterator[None]:
    """Waits until no other run writes the folder, and keeps others waiting inside the block."""
    lock = folder.absolute().with_name(f".{folder.absolute().name}.lock")
    with ExitStack() as held:
        told = False
        while not _locked_now(lock, held):
            if not told:
                say(f"another run prepares the frames in {folder}: waiting for it")
                told = True
            time.sleep(POLL_S)
        yield


def _locked_now(lock: Path, held: ExitStack) -> bool:
    """Whether the lock is ours until `held` ends. It is where no file can be written, as on a
    read-only disk: nobody changes the cache there.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(lock, "another run has it"))
    except UserError:
        return False
    except OSError:
        return True
    held.callback(lock.unlink, missing_ok=True)
    return True


def _check_folder(folder: Path, needed: int) -> None:
    """UserError when `folder` holds anything but a cache, or its disk has too little space."""
    if (
        folder.exists()
        and not (folder / CACHE).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise UserError(
            f"{folder} exists and is not a frame cache; choose another --cache-dir or remove it"
        )
    others = [
        p.name for p in folder.glob("*") if p.suffix != ".npy" and p.name not in (CACHE, STATS_FILE)
    ]
    if others:
        raise UserError(
            f"{folder} is the frame cache of other data and also contains {others[0]}, so it is "
            "not overwritten; choose another --cache-dir"
        )
    place = next(p for p in [folder, *folder.absolute().parents] if p.is_dir())
    free = shutil.disk_usage(place).free
    if needed > 0.95 * free:
        raise UserError(
            f"the decoded frames need {needed / 1e9:.1f} GB, but {place} has {free / 1e9:.1f} GB "
            "free; choose another --cache-dir, a smaller image_resize_shape, or --frames video, "
            "which needs no cache"
        )
