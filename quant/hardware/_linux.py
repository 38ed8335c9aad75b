"""The processor and the memory from Linux's /proc and /sys.

Every file may be missing or forbidden, as in containers and sandboxes: what it would have told is then left out.
"""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from quant.hardware import pages
from quant.hardware._parts import Cache, Cores, Memory, Processor, known_features

_CPUS = Path("sys/devices/system/cpu")
_ARM = "0x41"
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",
    "0xd84": "Neoverse-V3",
    "0xd8e": "Neoverse-N3",
}
"""Cores by the number in /proc/cpuinfo, which has no name on Arm (Arm's MIDR_EL1 registers)."""
_HOLDS = {"Data": "data", "Instruction": "instructions", "Unified": "both"}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_NO_LIMIT = 2**60
"""cgroup v1 writes a number near 2**63 for "no limit"."""


def processor(root: Path) -> Processor:
    """Return the processor that the files under ``root`` describe."""
    entries = _entries(_read(root / "proc/cpuinfo"))
    first = entries[0] if entries else {}
    flags = (first.get("flags") or first.get("Features") or "").split()
    allowed = _allowed()
    cpus = sorted(_numbers(_read(root / _CPUS / "online"))) or list(range(len(entries)))
    kinds = _kinds(root, cpus)
    return Processor(
        name=" + ".join(dict.fromkeys(map(_name, entries))) or platform.processor(),
        architecture=platform.machine(),
        features=known_features(flags),
        cores=_cores(root, cpus, kinds),
        threads=len(cpus) or os.cpu_count(),
        allowed=len(allowed) if allowed else os.cpu_count(),
        quota=_quota(root),
        caches=_caches(root, cpus, kinds),
        virtual="hypervisor" in flags,
    )


def memory(root: Path) -> Memory:
    """Return the memory that the files under ``root`` describe."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    sizes = {name: 1024 * int(value) for name, value in fields.items()}
    limits = [
        int(text)
        for folder in _control_groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name).strip()).isdigit()
    ]
    limit = min(limits, default=_NO_LIMIT)
    return Memory(
        sizes.get("MemTotal"),
        sizes.get("MemAvailable"),
        limit if limit < _NO_LIMIT else None,
        pages.in_use(root),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _entries(text: str) -> list[dict[str, str]]:
    """Return the fields of each processor in /proc/cpuinfo."""
    blocks = (dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", block, re.MULTILINE)) for block in text.split("\n\n"))
    return [block for block in blocks if "processor" in block]


def _name(entry: dict[str, str]) -> str:
    """Return the chip's name; on Arm, where there is none, that of the core."""
    if entry.get("model name"):
        return entry["model name"].strip()
    if entry.get("CPU implementer") == _ARM and entry.get("CPU part") in _ARM_PARTS:
        return _ARM_PARTS[entry["CPU part"]]
    if "CPU part" in entry:
        return f"part {entry['CPU part']} of implementer {entry.get('CPU implementer', 'unknown')}"
    return ""


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _numbers(text: str) -> set[int]:
    """Return the numbers of a list such as "0-3,8"."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part[:1].isdigit())
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


def _kinds(root: Path, cpus: list[int]) -> dict[int, str]:
    """Return the kind of each logical processor, where there are several.

    Intel's hybrid chips list theirs as devices; Arm's kernels give each core a capacity, of 1024 at most.
    """
    kinds = {
        cpu: kind
        for device, kind in (("cpu_core", "performance"), ("cpu_atom", "efficiency"))
        for cpu in _numbers(_read(root / "sys/devices" / device / "cpus"))
    }
    if not kinds:
        capacities = {cpu: _read(root / _CPUS / f"cpu{cpu}/cpu_capacity").strip() for cpu in cpus}
        capacities = {cpu: int(text) for cpu, text in capacities.items() if text.isdigit()}
        most = max(capacities.values(), default=0)
        kinds = {cpu: "performance" if capacities[cpu] == most else "efficiency" for cpu in capacities}
    return kinds if len(set(kinds.values())) > 1 else {}


def _cores(root: Path, cpus: list[int], kinds: dict[int, str]) -> tuple[Cores, ...]:
    """Count physical cores: logical processors that do not share a core with an earlier one. Empty if unknown."""
    siblings = {cpu: _numbers(_read(root / _CPUS / f"cpu{cpu}/topology/thread_siblings_list")) for cpu in cpus}
    firsts = [cpu for cpu in cpus if cpu == min(siblings[cpu], default=None)]
    counts = Counter(kinds.get(cpu, "") for cpu in firsts)
    return tuple(Cores(kind, counts[kind]) for kind in sorted(counts, reverse=True))


def _caches(root: Path, cpus: list[int], kinds: dict[int, str]) -> tuple[Cache, ...]:
    """Count caches of one level, purpose and size once for each set of processors that share one."""
    shared: dict[tuple[int, str, int], set[str]] = {}
    owners: dict[tuple[int, str, int], set[str]] = {}
    for cpu in cpus:
        for folder in sorted((root / _CPUS / f"cpu{cpu}/cache").glob("index*")):
            level, size = _read(folder / "level").strip(), re.match(r"(\d+)([KMG]?)$", _read(folder / "size").strip())
            if level.isdigit() and size:
                holds = _HOLDS.get(_read(folder / "type").strip(), "both")
                key = (int(level), holds, int(size[1]) * _UNITS[size[2]])
                shared.setdefault(key, set()).add(_read(folder / "shared_cpu_list").strip() or str(cpu))
                owners.setdefault(key, set()).add(kinds.get(cpu, ""))
    return tuple(
        Cache(level, holds, size, len(shared[level, holds, size]), _only(owners[level, holds, size]))
        for level, holds, size in sorted(shared, key=lambda key: (key[0], key[1], -key[2]))
    )


def _only(kinds: set[str]) -> str:
    return next(iter(kinds)) if len(kinds) == 1 else ""


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups this process is in, the innermost first: each may set a limit."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "unknown", "")
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = base / path.lstrip("/")
        # Inside a container the path is often the host's, of which only the top is mounted.
        yield from (folder, *(parent for parent in folder.parents if parent == base or base in parent.parents))


def _quota(root: Path) -> float | None:
    """Return how many processors' worth of time the narrowest control group grants."""
    quotas = []
    for folder in _control_groups(root, "cpu"):
        older = " ".join(_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        figures = re.match(r"(\d+)\s+(\d+)", _read(folder / "cpu.max") or older)  # "max" and -1 are no limit
        if figures and int(figures[2]):
            quotas.append(int(figures[1]) / int(figures[2]))
    return min(quotas, default=None)
