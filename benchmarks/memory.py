"""How far the memory of this process grows, as the operating system counts it."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def start_peak() -> int:
    """Return the bytes resident now; on Linux the peak is forgotten, so that it counts from here.

    Where the peak cannot be forgotten, it stays that of loading while that is higher: growth is then at most as told.
    """
    with suppress(OSError):
        _RESET.write_text(_RESET_PEAK)
    return psutil.Process().memory_info().rss


def peak() -> int:
    """Return the most bytes that were resident at once: since :func:`start_peak` on Linux, else since the start.

    Linux keeps the figure as ``VmHWM``; ``ru_maxrss`` will not do there, because a child's begins at its parent's.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
