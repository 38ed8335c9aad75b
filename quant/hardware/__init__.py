"""What this machine is, as far as it decides how fast and how right quantized numbers are computed on it.

:func:`processor` reads what the operating system tells and imports nothing; :func:`machine` also asks torch for
accelerators. What the system does not tell is None or empty, never guessed.
"""

import functools
import sys
from pathlib import Path

from quant.hardware import _apple, _linux
from quant.hardware._parts import FEATURES, Accelerator, Cache, Cores, Machine, Memory, Processor

__all__ = ["FEATURES", "Accelerator", "Cache", "Cores", "Machine", "Memory", "Processor", "machine", "processor"]


@functools.cache
def processor() -> Processor:
    """Return the processor as this process may use it."""
    return _apple.processor(_apple.sysctl()) if sys.platform == "darwin" else _linux.processor(Path("/"))


def machine() -> Machine:
    """Return the whole machine; imports torch."""
    from quant.hardware import _accelerators

    memory = _apple.memory(_apple.sysctl()) if sys.platform == "darwin" else _linux.memory(Path("/"))
    return Machine(processor(), memory, tuple(_accelerators.find(processor())))
