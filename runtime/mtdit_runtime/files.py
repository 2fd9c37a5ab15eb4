"""Reads files strictly: JSON into annotated types, npz arrays without pickle, checksums."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import types
import typing
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtdit_robots.errors import UserError
from mtdit_runtime.text import first_line

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # `mtdit --help` reads no array and waits for no numpy
    from numpy.typing import NDArray


RESTORE = "restore it from a backup or train again"


def load(path: Path, kind: Any, name: str = "", fix: str = RESTORE) -> Any:
    """The content of a JSON file, built as `kind` (a dataclass or another annotated type).

    UserError names the file, the value that is wrong and `fix`. `name` is what messages call the
    outermost value.
    """
    return build(path, kind, read_json(path, fix), name, fix)


def read_json(path: Path, fix: str = RESTORE) -> Any:
    """Parsed JSON whose text can be written and printed again. UserError: missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        # JSON can escape half a surrogate pair, which no encoding of a file or a terminal takes
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder that contains it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {fix}") from None


def build(path: Path, kind: Any, value: Any, name: str, fix: str) -> Any:
    """A parsed value of `path`, built as `kind`. UserError as in `load`."""
    try:
        return from_json(kind, value, name)
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]  # a key may hold line breaks
        raise UserError(f"{path} is not valid ({reason}); {fix}") from None


MAX_DIM = 1 << 20  # the largest plausible size of anything; a larger one means a broken manifest


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Lock a folder, or a file that is created if needed, inside the block; the lock ends with the
    process. UserError(busy) while another process holds it.

    On a file system without locks, as some network ones are, the block runs without one.
    """
    try:
        mode = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, mode, 0o666)
    except FileNotFoundError:  # the process that held it has just removed its folder
        raise UserError(busy) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removed = not os.path.samestat(os.fstat(descriptor), path.stat())
        except (BlockingIOError, FileNotFoundError):
            removed = True
        except OSError as error:
            log.debug("%s cannot be locked: %s", path, error)
            removed = False
        if removed:  # or another process has it
            raise UserError(busy)
        yield
    finally:
        os.close(descriptor)


def from_json(kind: Any, data: Any, where: str) -> Any:
    """Convert a JSON value to the annotated type, strictly. `where` names the value in an error.

    Raises TypeError, ValueError or OverflowError.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if origin is tuple:
        items = _expect(data, list, where)
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise ValueError(f"{where} must have {len(args)} entries, not {len(items)}")
        return tuple(from_json(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(data, dict, where).items()
        return {key: from_json(args[1], item, f"{where}.{key}") for key, item in items}
    if origin in (types.UnionType, typing.Union):
        return None if data is None else from_json(args[0], data, where)
    if kind is float and type(data) is int:
        return float(data)
    return _expect(data, kind, where)


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    data = _expect(data, dict, where)
    wrong = sorted(set(data) ^ set(hints))
    if wrong:
        raise ValueError(f"{where}.{wrong[0]} is {'unknown' if wrong[0] in data else 'missing'}")
    return kind(
        **{name: from_json(hint, data[name], f"{where}.{name}") for name, hint in hints.items()}
    )


def _expect(data: Any, kind: type, where: str) -> Any:
    if type(data) is not kind:
        raise TypeError(f"{where} must be {kind.__name__}, not {type(data).__name__}")
    return data


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file. UserError when it is not one."""
    try:
        import numpy as np

        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path} is malformed ({first_line(error)}): re-run `mtdit export`"
        ) from None
