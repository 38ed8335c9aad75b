"""Linux's files of several machines, whole, in part and forbidden."""

import os

import pytest

from quant.hardware import Cache, Cores, Memory, _linux
from tests.quant.hardware import machines


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (machines.SKYLAKE, "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", "avx2 avx512f"),
        (machines.ZEN_4, "AMD EPYC 9R14", "avx2 avx512bf16 avx512f avx512vnni"),
        (machines.ALDER_LAKE, "12th Gen Intel(R) Core(TM) i5-12600K", "avx2 avxvnni"),
        (machines.GRAVITON_2, "Neoverse-N1", "asimddp asimdhp"),
        (machines.GRAVITON_3, "Neoverse-V1", "asimddp asimdhp bf16 i8mm sve"),
        (machines.RK3588, "Cortex-A55 + Cortex-A76", "asimddp asimdhp"),
        (machines.arm(["0xfff"], "asimd"), "part 0xfff of implementer 0x41", ""),
    ],
    ids=["skylake", "zen", "alder_lake", "graviton_two", "graviton_three", "big_little", "unknown_part"],
)
def test_names_and_features(root, text, name, features):
    root.write("proc/cpuinfo", text)
    processor = _linux.processor(root.path)
    assert processor.name == name
    assert processor.features == tuple(features.split())


def test_a_virtual_machine_says_so(root):
    root.write("proc/cpuinfo", machines.SKYLAKE)
    assert _linux.processor(root.path).virtual
    root.write("proc/cpuinfo", machines.HASWELL)
    assert not _linux.processor(root.path).virtual


def test_two_threads_of_a_core_are_one_core(root):
    root.write("proc/cpuinfo", machines.SKYLAKE)
    first, second = "0,2", "1,3"
    private = {0: first, 1: second, 2: first, 3: second}
    caches = {
        cpu: [(1, "Data", "32K", own), (1, "Instruction", "32K", own), (2, "Unified", "1024K", own),
              (3, "Unified", "33M", "0-3")]
        for cpu, own in private.items()
    }  # fmt: skip
    root.cpus("0-3", private, caches)
    processor = _linux.processor(root.path)
    assert processor.cores == (Cores("", 2),)
    assert processor.threads == 4
    assert processor.caches == (
        Cache(1, "data", 32 * 2**10, 2),
        Cache(1, "instructions", 32 * 2**10, 2),
        Cache(2, "both", 2**20, 2),
        Cache(3, "both", 33 * 2**20, 1),
    )


def test_intels_hybrid_cores_have_kinds(root):
    root.write("proc/cpuinfo", machines.ALDER_LAKE)
    siblings = {cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" for cpu in range(12)} | {
        cpu: str(cpu) for cpu in range(12, 16)
    }
    caches = {0: [(2, "Unified", "1280K", "0-1")], 12: [(2, "Unified", "2048K", "12-15")]}
    root.cpus("0-15", siblings, caches)
    root.write("sys/devices/cpu_core/cpus", "0-11\n")
    root.write("sys/devices/cpu_atom/cpus", "12-15\n")
    processor = _linux.processor(root.path)
    assert processor.cores == (Cores("performance", 6), Cores("efficiency", 4))
    assert [(cache.size, cache.kind) for cache in processor.caches] == [
        (2048 * 2**10, "efficiency"),
        (1280 * 2**10, "performance"),
    ]


def test_arms_capacities_tell_kinds(root):
    root.write("proc/cpuinfo", machines.RK3588)
    root.cpus("0-7", {cpu: str(cpu) for cpu in range(8)}, {})
    for cpu in range(8):
        root.write(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", "530\n" if cpu < 4 else "1024\n")
    assert _linux.processor(root.path).cores == (Cores("performance", 4), Cores("efficiency", 4))


def test_equal_capacities_are_no_kinds(root):
    root.write("proc/cpuinfo", machines.GRAVITON_3)
    root.cpus("0-3", {cpu: str(cpu) for cpu in range(4)}, {})
    for cpu in range(4):
        root.write(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", "1024\n")
    assert _linux.processor(root.path).cores == (Cores("", 4),)


def test_nothing_readable_is_nothing_known(root):
    processor = _linux.processor(root.path)
    assert processor.features == processor.cores == processor.caches == ()
    assert processor.quota is None
    assert processor.allowed >= 1
    assert _linux.memory(root.path) == Memory()


def test_forbidden_files_are_like_missing_ones(root, monkeypatch):
    root.write("proc/cpuinfo", machines.ZEN_4)
    root.write("proc/meminfo", "MemTotal: 16 kB\n")

    def forbidden(*args, **kwargs):
        raise PermissionError("no")

    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    assert _linux.processor(root.path).features == ()
    assert _linux.memory(root.path) == Memory()


@pytest.mark.parametrize(
    "text", ["", "\n\n", "processor\n", "no colons at all", "processor\t: 0\nflags\t:\n", "\x00\xff:"]
)
def test_a_damaged_cpuinfo_names_no_features(root, text):
    root.write("proc/cpuinfo", text)
    assert _linux.processor(root.path).features == ()


@pytest.mark.parametrize("size", ["", "big", "32Q", "-1K"])
def test_a_cache_without_a_size_is_left_out(root, size):
    root.cpus("0", {0: "0"}, {0: [(1, "Data", size, "0"), (2, "Unified", "1M", "0")]})
    assert _linux.processor(root.path).caches == (Cache(2, "both", 2**20, 1),)


def test_affinity_narrows_what_is_allowed(root, monkeypatch):
    root.write("proc/cpuinfo", machines.SKYLAKE)
    root.cpus("0-3", {cpu: str(cpu) for cpu in range(4)}, {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3}, raising=False)
    processor = _linux.processor(root.path)
    assert (processor.threads, processor.allowed) == (4, 2)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "50000 100000", "a/b/cpu.max": "200000 100000"}, 0.5),
        ("0::/docker/gone\n", {"cpu.max": "300000 100000"}, 3.0),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "25000", "cpu/x/cpu.cfs_period_us": "100000"}, 0.25),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("0::/\n", {"cpu.max": "garbage"}, None),
        ("0::/../other\n", {}, None),
        ("nonsense", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_narrowest_control_group_is_the_quota(root, groups, files, expected):
    root.write("proc/self/cgroup", groups)
    for name, text in files.items():
        root.write(f"sys/fs/cgroup/{name}", f"{text}\n")
    assert _linux.processor(root.path).quota == expected


@pytest.mark.parametrize(
    ("groups", "name", "text", "expected"),
    [
        ("0::/", "memory.max", "1073741824", 2**30),
        ("0::/", "memory.max", "max", None),
        ("4:memory:/", "memory/memory.limit_in_bytes", str(2**29), 2**29),
        ("4:memory:/", "memory/memory.limit_in_bytes", "9223372036854771712", None),
    ],
)
def test_memory_and_its_limit(root, groups, name, text, expected):
    root.write("proc/meminfo", "MemTotal:       24683656 kB\nMemFree: 1 kB\nMemAvailable:   22068848 kB\n")
    root.write("proc/self/cgroup", f"{groups}\n")
    root.write(f"sys/fs/cgroup/{name}", f"{text}\n")
    assert _linux.memory(root.path) == Memory(24683656 * 1024, 22068848 * 1024, expected)
