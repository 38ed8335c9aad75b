"""Say what this machine is, and what follows for quantized models on it.

Nothing is guessed: what the operating system does not tell is left out. The memory is measured for a few seconds.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quant.hardware import FEATURES, Accelerator, Cache, Machine, Memory, Processor

if TYPE_CHECKING:
    from quant.hardware.strategy import Suited

HELP = "what this machine is, and what follows for quantized models on it"

_WIDTH = 14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    from quant import hardware
    from quant.hardware import bandwidth, strategy

    machine = hardware.machine()
    measured = bandwidth.measure(machine)
    for name, value in (*facts(machine), ("bandwidth", str(measured))):
        print(f"{name:{_WIDTH}}{value}")
    print("\nWhat follows for quantized models:")
    for sentence in (*strategy.consequences(machine), strategy.tokens_per_second(measured)):
        print(f"- {sentence}")
    print("\nWhat suits each target here, by the facts alone:")
    for line in targets_here(machine):
        print(f"- {line}")
    return 0


def targets_here(machine: Machine) -> Iterator[str]:
    """Yield a line for each target that runs on this machine, then one for each that does not."""
    from quant.backends import targets
    from quant.hardware import strategy

    here = [name for name, found in targets().items() if found.runs_here]
    suited = {name: strategy.suited(name, machine) for name in targets()}
    for name in here:
        if suited[name]:
            yield f"{name}: {_suited(suited[name])}."
    for name, found in targets().items():
        if name not in here:
            elsewhere = f"; there {_suited(suited[name])}" if suited[name] else ""
            yield f"{found.elsewhere() or f'{name} only evaluates its models here'}{elsewhere}."


def _suited(suited: "Suited") -> str:
    words = ", ".join(f"{word} ({family})" for family, listed in suited.words.items() for word in listed)
    return f"{words}; {suited.why}"


def facts(machine: Machine) -> Iterator[tuple[str, str]]:
    """Yield what is known of ``machine``: the name of a fact and the fact."""
    processor = machine.processor
    yield "processor", f"{processor.name or 'unnamed'} ({processor.architecture})"
    yield (
        "instructions",
        ", ".join(FEATURES[name] for name in FEATURES if processor.has(name)) or "none known of those that matter",
    )
    yield "cores", _cores(processor)
    if processor.caches:
        yield "caches", ", ".join(map(_cache, processor.caches))
    if machine.memory.total:
        yield "memory", _memory(machine.memory)
    for accelerator in machine.accelerators:
        yield accelerator.kind, _accelerator(accelerator)
    if not machine.accelerators:
        yield "accelerators", "none"


def _cores(processor: Processor) -> str:
    parts = [f"{cores.count} {cores.kind}".strip() for cores in processor.cores]
    physical = f"{' + '.join(parts)}, " if parts else ""
    quota = f", {processor.quota:g} processors' worth of time" if processor.quota else ""
    return f"{physical}{processor.threads} logical, {processor.allowed} of them for this process{quota}"


def _cache(cache: Cache) -> str:
    purpose = {"data": "d", "instructions": "i"}.get(cache.holds, "")
    count = f" x {cache.count}" if cache.count else ""
    return f"L{cache.level}{purpose} {_bytes(cache.size)}{count}{f' ({cache.kind})' if cache.kind else ''}"


def _memory(memory: Memory) -> str:
    available = f", {_bytes(memory.available)} available" if memory.available else ""
    limit = f", limited to {_bytes(memory.limit)}" if memory.limit else ""
    pages = ", in huge pages" if memory.huge_pages else ""
    return f"{_bytes(memory.total)}{available}{limit}{pages}"


def _accelerator(accelerator: Accelerator) -> str:
    memory = f", {_bytes(accelerator.memory)}" if accelerator.memory else ""
    capability = f", compute capability {'.'.join(map(str, accelerator.capability))}" if accelerator.capability else ""
    return f"{accelerator.name}{memory}{capability}"


def _bytes(count: int) -> str:
    units = ("bytes", "KiB", "MiB", "GiB")
    power = next((power for power in range(3) if count < 1024 ** (power + 1)), 3)
    return f"{count / 1024**power:.4g} {units[power]}"
