"""Copies of a folder before each change of a file in it: what a kill at that moment leaves.

Audit events of the interpreter tell of each file that is opened, renamed or removed. A file that
readers see must never be written in place; then these are all the states there are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def keep_moments(folder: Path, copies: Path, aside: str) -> None:
    """From now on, in this process. aside: a folder in it that readers ignore.

    The copy of a moment is a folder with a number; a moment like the one before it has none.
    """
    seen: dict[str, tuple[int, bytes]] = {}
    busy = [False]

    def hook(event: str, words: tuple[Any, ...]) -> None:
        if busy[0] or not (event in CHANGES or (event == "open" and _writes(words))):
            return
        paths = [str(word) for word in words[:2] if isinstance(word, str | os.PathLike)]
        if any(path.startswith(str(folder)) for path in paths):
            busy[0] = True
            try:
                _copy(folder, copies, aside, seen)
            finally:
                busy[0] = False

    copies.mkdir()
    sys.addaudithook(hook)


def _writes(words: tuple[Any, ...]) -> bool:
    flags = words[2] if isinstance(words[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _copy(folder: Path, copies: Path, aside: str, seen: dict[str, tuple[int, bytes]]) -> None:
    visible = {
        str(path): (path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and aside not in path.parts and not path.name.startswith(".")
    }
    for path, (inode, content) in visible.items():
        if path in seen and seen[path][0] == inode and seen[path][1] != content:
            raise AssertionError(f"{path} was written in place")
    if {path: content for path, (_, content) in visible.items()} != {
        path: content for path, (_, content) in seen.items()
    }:
        shutil.copytree(folder, copies / f"{len(list(copies.iterdir())):03d}")
        seen.clear()
        seen.update(visible)


def moments_of(script: str, folder: Path, aside: str) -> list[Path]:
    """The copies that a script leaves which changes `folder`, the last one when it has ended."""
    copies = folder.with_name(f"{folder.name}-moments")
    begin = (
        "from pathlib import Path\nfrom moments import keep_moments\n"
        f"folder = Path({str(folder)!r})\n"
        f"keep_moments(folder, Path({str(copies)!r}), {aside!r})\n"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", begin + script], env=paths, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder, copies / "the-end")
    return sorted(copies.iterdir())
