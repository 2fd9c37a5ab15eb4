"""What a frame cache on disk remembers of the files that its frames come from.

A file whose size and times are the same is not read again; one that was copied or touched is read
and compared by its checksum; only what differs is decoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtdit.data.frame_sources import Source
from mtdit_robots.errors import UserError
from mtdit_runtime.files import from_json, read_json

CACHE = "frames.json"  # the file that makes a folder a cache
# Raised when caches of before may hold other frames, which are then decoded again. 2: frames are
# found by time, each row is written exactly once, and the files that they come from are known.
FORMAT = 2


@dataclass(frozen=True)
class KeptFile:
    """A file of the dataset whose frames are in the cache."""

    name: str  # relative to the dataset
    stamp: tuple[int, ...]  # size, time of change, time of change of the inode, ns
    content: str  # checksum of what the frames are decoded from
    identity: str  # of the content and of which frame belongs to which row


@dataclass(frozen=True)
class Record:
    """The origin of one camera's frames, as in frames.json."""

    shape: tuple[int, ...]  # (N, H, W, 3), as stored
    files: tuple[KeptFile, ...]
    doubts: tuple[str, ...]  # lines of the spot check


@dataclass(frozen=True)
class Kept:
    """One camera of an existing cache."""

    record: Record
    source: NDArray[np.int32]  # (N,) number of the row's file
    frames: NDArray[np.uint8]  # (N, H, W, 3)

    def fits(self, record: Record, source: NDArray[np.int32]) -> bool:
        """Whether these are the frames of a record whose rows come from the files `source`."""
        mine, wanted = ([f.identity for f in r.files] for r in (self.record, record))
        same_files = mine == wanted and self.record.shape == record.shape
        return same_files and np.array_equal(self.source, source)

    def rows_of(self, file: KeptFile, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
        """The rows here that have a file's frames in this shape, ascending; None if none have."""
        if self.record.shape[1:] != shape[1:]:
            return None
        identities = [f.identity for f in self.record.files]
        if file.identity not in identities:
            return None
        return np.flatnonzero(self.source == identities.index(file.identity))


def frames_file(folder: Path, camera: str) -> Path:
    """Where a camera's frames are, (N, H, W, 3) uint8."""
    return folder / f"frames.{camera}.npy"


def source_file(folder: Path, camera: str) -> Path:
    """Where a camera's rows have the number of their file, (N,) int32."""
    return folder / f"source.{camera}.npy"


def kept_frames(folder: Path) -> dict[str, Kept]:
    """Camera -> its frames in the cache; none if there is no cache, or a damaged or older one."""
    if not (folder / CACHE).is_file():
        return {}
    try:
        raw = read_json(folder / CACHE)
        if raw.get("format") != FORMAT:
            return {}
        return {camera: _kept(folder, camera, record) for camera, record in raw["frames"].items()}
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _kept(folder: Path, camera: str, raw: object) -> Kept:
    record = from_json(Record, raw, camera)
    source = np.load(source_file(folder, camera))
    frames = np.load(frames_file(folder, camera), mmap_mode="r")
    if frames.shape != record.shape or frames.dtype != np.uint8 or len(source) != len(frames):
        raise ValueError(f"the frames of {camera} are not those in {CACHE}")
    return Kept(record, source, frames)


def new_record(
    root: Path, shape: tuple[int, ...], sources: Sequence[Source], kept: Kept | None
) -> tuple[Record, NDArray[np.int32]]:
    """The record of a camera's frames as the dataset has them now, and each row's file.

    kept: the camera in an existing cache, whose checksums of untouched files are taken over.
    """
    known = {file.name: file for file in kept.record.files} if kept else {}
    files, rows = [], np.full(shape[0], -1, np.int32)
    for number, source in enumerate(sources):
        name = source.path.relative_to(root).as_posix()
        stamp = _stamp(source.path)
        before = known.get(name)
        untouched = before is not None and before.stamp == stamp
        content = before.content if before is not None and untouched else source.content()
        files.append(KeptFile(name, stamp, content, source.identity(content)))
        rows[source.rows] = number
    return Record(shape, tuple(files), ()), rows


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        raise UserError(
            f"{path} does not exist; copy the whole dataset, or give a folder of decoded frames "
            "as --dataset"
        ) from None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
