"""How a new bundle takes its place: made in a hidden folder beside it, put there as a whole, or not
at all.

Knows what may be replaced: a bundle and nothing else; and that one export at a time writes to a
place. Refuses to know what is in a bundle beyond what its manifest lists.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TextIO

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle import ENGINES, MANIFEST
from mtdit_runtime.words import is_visible, plain

NEW, OLD, LOCK = "new", "old", "lock"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a write, which does not name its file
ELSEWHERE = "choose another --out"


@contextmanager
def new_bundle(out: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends without an error, and vanishes
    otherwise.

    An older bundle there is replaced only then; its engines are kept, since they are known by the
    graphs they were built from. Nothing ever sees half a bundle. UserError, before the block: `out`
    is no place for a bundle, or another export writes there; after it: it could not be written.
    """
    place = bundle_place(out)
    with _in_one_line(place), _alone_beside(place) as work:
        check_replaceable(place)
        (work / NEW).mkdir()
        try:
            yield work / NEW
        except UserError as error:
            raise UserError(str(error).replace(str(work / NEW), str(place))) from error
        for line in _put(work / NEW, place, work / OLD):
            say(line)


def bundle_place(out: Path) -> Path:
    """The folder itself, links followed: a link stays, what it points to is replaced. UserError: no
    file has that name.

    A name of characters that nobody sees could not be told to anybody.
    """
    shown = plain(out)
    if not all(map(is_visible, str(out))):
        raise UserError(f"--out {shown} holds characters that no file name should: {ELSEWHERE}")
    try:
        place = Path(out).resolve()
    except (
        OSError,
        RuntimeError,
    ) as error:  # Python 3.12 and earlier: RuntimeError for a link to itself
        raise UserError(
            f"--out {shown}: {getattr(error, 'strerror', None) or error}: {ELSEWHERE}"
        ) from None
    if not place.name or not all(map(is_visible, str(place))):
        raise UserError(f"--out {plain(place)} is no name for a bundle: {ELSEWHERE}")
    return place


def check_replaceable(place: Path) -> None:
    """UserError: `place` lies in a bundle, or holds something that is not a bundle, or more than
    one.
    """
    if within := next((folder for folder in place.parents if _listed(folder) is not None), None):
        raise UserError(f"{place} lies in the bundle {within}: {ELSEWHERE}")
    if not os.path.lexists(place):
        return
    listed = _listed(place)
    if listed is None:
        raise UserError(f"{place} exists and is not a bundle: {ELSEWHERE}")
    if other := next(_others(place, listed), None):
        raise UserError(
            f"{place} holds {plain(other)}, which is no part of a bundle: move it away, or {ELSEWHERE}"
        )
    if Path.cwd().is_relative_to(place):
        raise UserError(f"{place} is the folder you are in: leave it first, or {ELSEWHERE}")


def _listed(folder: Path) -> set[PurePosixPath] | None:
    """The files of a bundle of any schema version, whole or not; None: it has no manifest of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = (
        isinstance(manifest, dict)
        and isinstance(manifest.get("files"), dict)
        and "schema_version" in manifest
    )
    return {PurePosixPath(name) for name in (MANIFEST, *manifest["files"])} if is_ours else None


def _others(folder: Path, listed: set[PurePosixPath]) -> Iterator[str]:
    """What lies in `folder` beside the listed files, the folders they lie in, and the engines."""
    known = listed.union(*(path.parents for path in listed))
    for root, folders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        if here == Path("."):
            folders[:] = [name for name in folders if name != ENGINES]
        yield from (
            str(here / name)
            for name in (*folders, *files)
            if PurePosixPath(here / name) not in known
        )


@contextmanager
def _alone_beside(place: Path) -> Iterator[Path]:
    """A hidden folder for one export at a time. What one that was killed left in it is put in order
    first.
    """
    work = place.with_name(f".{place.name}.part")
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        with suppress(FileExistsError):  # it may be gone again before mkdir itself has looked
            work.mkdir(parents=True)
        with _lock(work / LOCK, place):
            try:
                _recover(work, place)
                yield work
            finally:
                for name in (NEW, OLD):
                    shutil.rmtree(work / name, ignore_errors=True)
                (work / LOCK).unlink(missing_ok=True)
    finally:
        with suppress(
            OSError
        ):  # those with the bundle, or with an export that locked them, are not empty
            for folder in made or [work]:
                folder.rmdir()


@contextmanager
def _lock(path: Path, place: Path) -> Iterator[None]:
    busy = UserError(f"another export writes to {place}: wait until it ends, or {ELSEWHERE}")
    try:
        file = path.open("w")
    except FileNotFoundError:  # it ended this very moment
        raise busy from None
    with file:
        if not _is_ours(file, path):
            raise busy
        yield


def _is_ours(file: TextIO, path: Path) -> bool:
    """Locked, and still the file of that name: the export before removed its own when it ended."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _recover(work: Path, place: Path) -> None:
    if (work / OLD).exists() and not place.exists():
        (work / OLD).rename(place)
    if (work / OLD / ENGINES).exists() and not (place / ENGINES).exists():
        (work / OLD / ENGINES).rename(place / ENGINES)
    for name in (NEW, OLD):
        shutil.rmtree(work / name, ignore_errors=True)


def _put(new: Path, place: Path, old: Path) -> list[str]:
    """Tells what became of an older bundle."""
    check_replaceable(place)
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    told = [f"replaced the bundle that was at {place}"] if old.exists() else []
    if (old / ENGINES).exists():
        (old / ENGINES).rename(place / ENGINES)
        told.append(
            "kept its TensorRT engines: those of changed graphs are not used, mtdit build --clean removes them"
        )
    return told


@contextmanager
def _in_one_line(place: Path) -> Iterator[None]:
    """What the disk refuses is the user's to mend, by the name that the user gave."""
    try:
        yield
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        hidden = str(place.with_name(f".{place.name}.part"))
        is_about_out = any(name.startswith(hidden) or place.is_relative_to(name) for name in names)
        if not is_about_out and error.errno not in DISK_FULL:
            raise
        why = error.strerror or str(error)
        raise UserError(
            f"--out {place} cannot be written ({why}): {ELSEWHERE}, or make room there"
        ) from error
