"""A limit on the size of files stands for a full disk: a program sees the same error, except that
neither names the file that was being written.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator

# At the start of a program of its own. No bytecode meanwhile: it would be cut off at the limit,
# and stay so for every interpreter after it.
LIMIT = (
    "import os, resource, sys; "
    "sys.dont_write_bytecode = True; os.environ['PYTHONDONTWRITEBYTECODE'] = '1'; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))\n"
)


@contextlib.contextmanager
def disk(size: int) -> Iterator[Callable[[], None]]:
    """Once called, the kernel refuses files of more than `size` bytes in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bytecode = sys.dont_write_bytecode

    def fill() -> None:
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        yield fill
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = bytecode
