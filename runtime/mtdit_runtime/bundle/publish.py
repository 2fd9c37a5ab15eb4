"""Writes a bundle in one step: it is made in a hidden folder and renamed into place when complete.

Only a bundle may be replaced, and only one export at a time may write to a place. Of an existing
bundle this module reads no more than the list of files in its manifest.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.manifest import ENGINES, MANIFEST
from mtdit_runtime.files import locked

NEW, OLD, LOCK = "new", "old", "lock"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # such an error does not name its file
ELSEWHERE = "choose another folder"


@contextmanager
def new_bundle(out: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends without an error and is deleted
    otherwise.

    If `out` already holds a bundle it is replaced only then. Its engines are kept, because each
    records which graphs it was built from. Nobody ever sees half a bundle. `say` is called with one
    line for each thing that was replaced or kept. UserError before the block when `out` cannot take
    a bundle or another export writes there, after it when the files could not be written.
    """
    place = bundle_place(out)
    with _disk_errors_named(place), _locked_scratch(place) as work:
        check_replaceable(place)
        (work / NEW).mkdir()
        try:
            yield work / NEW
        except UserError as error:
            raise UserError(str(error).replace(str(work / NEW), str(place))) from error
        for line in _put(work / NEW, place, work / OLD):
            say(line)


def bundle_place(out: Path) -> Path:
    """The folder to write, with symlinks followed: the link stays, its target is replaced.

    UserError when no folder can have that name.
    """
    try:
        place = Path(out).resolve()
        str(place).encode()  # the manifest names the bundle after its folder
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: until Python 3.12
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{out}: {reason}: {ELSEWHERE}") from None
    if not place.name:
        raise UserError(f"{place} cannot be the name of a bundle: {ELSEWHERE}")
    return place


def check_replaceable(place: Path) -> None:
    """UserError when `place` is inside a bundle, is not a bundle, or holds files that no bundle
    lists.
    """
    if within := next((folder for folder in place.parents if _listed(folder) is not None), None):
        raise UserError(f"{place} is inside the bundle {within}: {ELSEWHERE}")
    if not os.path.lexists(place):
        return
    listed = _listed(place)
    if listed is None:
        raise UserError(f"{place} exists and is not a bundle: {ELSEWHERE}")
    if other := next(_others(place, listed), None):
        raise UserError(
            f"{place} holds {other}, which is not part of the bundle: move it away, or {ELSEWHERE}"
        )
    if Path.cwd().is_relative_to(place):
        raise UserError(f"{place} contains the current directory: leave it first, or {ELSEWHERE}")


def _listed(folder: Path) -> set[PurePosixPath] | None:
    """The files that a folder's manifest lists, whatever its schema version, whether they exist or
    not; None when the folder has no manifest of a bundle.
    """
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
    """Paths in `folder` other than the listed files, their folders and the engines."""
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
def _locked_scratch(place: Path) -> Iterator[Path]:
    """The hidden folder of one export at a time, cleaned up after an export that was killed."""
    work = place.with_name(f".{place.name}.part")
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        # exist_ok=True would fail if another export removed the folder while mkdir runs
        with suppress(FileExistsError):
            work.mkdir(parents=True)
        busy = f"another export is writing {place}: wait until it ends, or {ELSEWHERE}"
        with locked(work / LOCK, busy):
            try:
                _recover(work, place)
                yield work
            finally:
                for name in (NEW, OLD):
                    shutil.rmtree(work / name, ignore_errors=True)
                (work / LOCK).unlink(missing_ok=True)
    finally:
        # folders that hold the bundle, or the lock of another export, are not empty and stay
        with suppress(OSError):
            for folder in made or [work]:
                folder.rmdir()


def _recover(work: Path, place: Path) -> None:
    """Undo what an export that was killed left half done."""
    if (work / OLD).exists() and not place.exists():
        (work / OLD).rename(place)
    if (work / OLD / ENGINES).exists() and not (place / ENGINES).exists():
        (work / OLD / ENGINES).rename(place / ENGINES)
    for name in (NEW, OLD):
        shutil.rmtree(work / name, ignore_errors=True)


def _put(new: Path, place: Path, old: Path) -> list[str]:
    """Rename the new bundle into place. Returns what happened to an older one, one line each."""
    check_replaceable(place)
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    lines = [f"replaced the previous bundle at {place}"] if old.exists() else []
    if (old / ENGINES).exists():
        (old / ENGINES).rename(place / ENGINES)
        lines.append(
            "kept its TensorRT engines: engines of changed graphs are not used, "
            "`mtdit build --clean` removes them"
        )
    return lines


@contextmanager
def _disk_errors_named(place: Path) -> Iterator[None]:
    """Turn an OSError about the scratch folder into a UserError that names `place` instead."""
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
            f"{place} cannot be written ({why}): {ELSEWHERE}, or make room there"
        ) from error
