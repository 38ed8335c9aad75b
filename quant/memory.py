"""The most memory that this process has held, as the operating system counts it."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """Return the most bytes that were resident at once since the process started, or since Linux was told to forget.

    Linux keeps the figure as ``VmHWM``; ``ru_maxrss`` will not do there, because a child's begins at its parent's.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
