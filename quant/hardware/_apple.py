"""The processor and the memory from macOS's ``sysctl``."""

import os
import platform
import re
import subprocess

from quant.hardware._parts import Cache, Cores, Memory, Processor, known_features

_FEATURES = {
    "FEAT_DotProd": "asimddp",
    "FEAT_FP16": "asimdhp",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
}


def sysctl() -> str:
    """Return what ``sysctl`` prints about the hardware, "" if it may not be asked."""
    command = ["/usr/sbin/sysctl", "hw", "machdep.cpu", "kern.hv_vmm_present"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def processor(text: str) -> Processor:
    """Return the processor that ``text``, the output of ``sysctl``, describes."""
    facts = _facts(text)
    levels = [_level(facts, f"hw.perflevel{i}.") for i in range(_number(facts, "hw.nperflevels") or 0)]
    if not levels and _number(facts, "hw.physicalcpu"):
        levels = [_level(facts, "hw.")]
    return Processor(
        name=facts.get("machdep.cpu.brand_string", platform.processor()),
        architecture=platform.machine(),
        features=_features(facts),
        cores=tuple(cores for cores, _ in levels),
        threads=_number(facts, "hw.logicalcpu") or os.cpu_count(),
        allowed=os.cpu_count(),
        caches=tuple(cache for _, caches in levels for cache in caches),
        virtual=facts.get("kern.hv_vmm_present") == "1",
    )


def memory(text: str) -> Memory:
    """Return the memory that ``text``, the output of ``sysctl``, describes."""
    return Memory(total=_number(_facts(text), "hw.memsize"))


def _facts(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.]+): ?(.*?)\s*$", text, re.MULTILINE))


def _number(facts: dict[str, str], name: str) -> int | None:
    return int(facts[name]) if facts.get(name, "").isdigit() else None


def _features(facts: dict[str, str]) -> tuple[str, ...]:
    """Return Arm's features, one field each, or Intel's, which are words of two fields."""
    arm = [flag for name, flag in _FEATURES.items() if facts.get(f"hw.optional.arm.{name}") == "1"]
    intel = [facts.get(f"machdep.cpu.{name}", "").split() for name in ("features", "leaf7_features")]
    return known_features([*arm, *intel[0], *intel[1]])


def _level(facts: dict[str, str], prefix: str) -> tuple[Cores, list[Cache]]:
    """Return the cores of one performance level and their caches."""
    kind, count = facts.get(f"{prefix}name", "").lower(), _number(facts, f"{prefix}physicalcpu") or 0
    sharing = _number(facts, f"{prefix}cpusperl2")
    counts = {
        "l1dcachesize": (1, "data", count),
        "l1icachesize": (1, "instructions", count),
        "l2cachesize": (2, "both", -(-count // sharing) if sharing else None),
        "l3cachesize": (3, "both", None),
    }
    caches = [
        Cache(level, holds, size, instances, kind)
        for name, (level, holds, instances) in counts.items()
        if (size := _number(facts, f"{prefix}{name}"))
    ]
    return Cores(kind, count), caches
