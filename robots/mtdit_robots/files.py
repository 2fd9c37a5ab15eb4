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
def new_folder(path: Path, sync: bool = False) -> Iterator[Path]:
    """An empty folder beside `path` for the block to fill, which then takes the place of `path`.

    After an error it is removed, and an earlier folder at `path` is still there. sync: flush every
    file to the disk before the rename.
    """
    part = part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if sync:
            for file in filter(Path.is_file, part.rglob("*")):
                flush_to_disk(file)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_of(path: Path) -> Path:
    """Where a file or folder is written before it is renamed to `path`. A program that was killed
    may leave it behind.
    """
    return path.with_name(f".{path.name}.part")


def flush_to_disk(path: Path) -> None:
    """Flush a file to the disk, so that it is not empty after a rename and a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
