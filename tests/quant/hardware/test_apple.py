"""What macOS says of several Macs."""

import subprocess

import pytest

from quant.hardware import Cache, Cores, Memory, _apple
from tests.quant.hardware import machines


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (machines.M1, "Apple M1", "asimddp asimdhp"),
        (machines.M3, "Apple M3", "asimddp asimdhp bf16 i8mm"),
        (machines.M4, "Apple M4", "asimddp asimdhp bf16 i8mm sme sme2"),
        (machines.INTEL_MAC, "Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz", "avx2 avx512f avx512vnni"),
    ],
    ids=["first", "third", "fourth", "intel"],
)
def test_names_and_features(text, name, features):
    processor = _apple.processor(text)
    assert processor.name == name
    assert processor.features == tuple(features.split())
    assert not processor.virtual
    assert _apple.memory(text) == Memory(total=16 * 2**30)


def test_cores_and_caches_of_each_kind():
    processor = _apple.processor(machines.M1)
    assert processor.apple
    assert processor.cores == (Cores("performance", 4), Cores("efficiency", 4))
    assert processor.threads == 8
    assert processor.caches == (
        Cache(1, "data", 128 * 2**10, 4, "performance"),
        Cache(1, "instructions", 192 * 2**10, 4, "performance"),
        Cache(2, "both", 12 * 2**20, 1, "performance"),
        Cache(1, "data", 64 * 2**10, 4, "efficiency"),
        Cache(1, "instructions", 128 * 2**10, 4, "efficiency"),
        Cache(2, "both", 4 * 2**20, 1, "efficiency"),
    )


def test_cores_of_an_intel_mac_are_alike():
    processor = _apple.processor(machines.INTEL_MAC)
    assert not processor.apple
    assert processor.cores == (Cores("", 4),)
    assert Cache(3, "both", 8 * 2**20, None) in processor.caches


def test_a_virtual_mac_says_so():
    assert _apple.processor(machines.M1_VIRTUAL).virtual


@pytest.mark.parametrize("text", ["", "sysctl: unknown oid 'hw'\n", "hw.nperflevels: many\nhw.memsize:\n", ": :\n"])
def test_nothing_told_is_nothing_known(text):
    processor = _apple.processor(text)
    assert processor.features == processor.cores == processor.caches == ()
    assert _apple.memory(text) == Memory()


@pytest.mark.parametrize(
    "error", [FileNotFoundError("sysctl"), PermissionError("no"), subprocess.TimeoutExpired("s", 1)]
)
def test_a_sysctl_that_cannot_run_tells_nothing(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert _apple.sysctl() == ""
