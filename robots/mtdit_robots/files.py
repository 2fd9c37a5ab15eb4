"""Writes files and folders beside their place and renames them into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_file(path: Path, sync: bool = False) -> Iterator[Path]:
    """A path beside `path` for the block to write, which is then renamed to `path`: nobody reads an
    incomplete file, and after an error the earlier one is still there.

    sync: flush to the disk before the rename, so that this holds after a power cut too.
    """
    part = part_of(path)
    part.unlink(missing_ok=True)
    try:
        yield part
        if sync:
            flush_to_disk(part)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def new_folder(path: Path, sync: bool = False, replace: bool = True) -> Iterator[Path]:
    """An empty folder beside `path` for the block to fill, which then takes the place of `path`.

    After an error it is removed, and an earlier folder at `path` is still there. sync: flush every
    file to the disk before the rename. replace: False raises OSError at the end if `path` exists
    by then and is not an empty folder.
    """
    part = part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if sync:
            for file in filter(Path.is_file, part.rglob("*")):
                flush_to_disk(file)
        if replace:
            _replace(path, part)
        else:
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(path: Path, part: Path) -> None:
    """Rename `part` to `path`. An earlier folder is deleted after that; an error puts it back."""
    earlier = path.with_name(f".{path.name}.earlier.part")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(earlier, ignore_errors=True)
            path.rename(earlier)
        part.rename(path)
    except BaseException:
        with suppress(OSError):
            earlier.rename(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def part_of(path: Path) -> Path:
    """Where a file or folder is written before it is renamed to `path`. A program that was killed
    may leave it behind.
    """
    return path.with_name(f".{path.name}.part")


def flush_to_disk(path: Path) -> None:
    """Flush a file to the disk, so that it is not empty after a rename and a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
