"""Memory of this computer and of this process."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def free_memory() -> int:
    """Bytes of memory that are available to programs."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in MB (RSS)."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1 << 20) if sys.platform == "darwin" else kilobytes / (1 << 10)
