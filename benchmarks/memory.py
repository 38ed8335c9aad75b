"""How far the memory of this process grows, as the operating system counts it."""

from contextlib import suppress
from pathlib import Path

import psutil

from quant.memory import peak

__all__ = ["peak", "start_peak"]

_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def start_peak() -> int:
    """Return the bytes resident now; on Linux the peak is forgotten, so that it counts from here.

    Where the peak cannot be forgotten, it stays that of loading while that is higher: growth is then at most as told.
    """
    with suppress(OSError):
        _RESET.write_text(_RESET_PEAK)
    return psutil.Process().memory_info().rss
