"""Accelerators that torch can use, and those it cannot."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from quant.hardware import Accelerator, _accelerators, _apple
from tests.quant.hardware import machines

SMI = "NVIDIA H100 80GB HBM3, 81559, 9.0\nTesla T4, 15360, 7.5\n"


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets what torch and NVIDIA's tool say."""

    def set_up(cards=(), metal=False, smi="", cuda=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: metal)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(_accelerators, "_nvidia_smi", lambda: smi)

    return set_up


def test_cards_that_torch_can_use(machine):
    machine([SimpleNamespace(name="NVIDIA H100", total_memory=2**36, major=9, minor=0)], smi=SMI)
    assert _accelerators.find(_apple.processor("")) == [Accelerator("cuda", "NVIDIA H100", 2**36, (9, 0))]


@pytest.mark.parametrize(("cuda", "reason"), [(None, "has no CUDA"), ("12.8", "cannot start CUDA")])
def test_cards_that_torch_cannot_use_are_named_with_the_reason(machine, cuda, reason):
    machine(smi=SMI, cuda=cuda)
    first, second = _accelerators.find(_apple.processor(""))
    assert first.name == "NVIDIA H100 80GB HBM3"
    assert (second.name, second.memory, second.capability) == ("Tesla T4", 15360 * 2**20, (7, 5))
    assert reason in first.unused
    assert reason in second.unused


@pytest.mark.parametrize("smi", ["", "No devices were found\n", "NVIDIA GB10, [N/A], 12.1\n"])
def test_what_nvidias_tool_does_not_tell_is_no_card(machine, smi):
    machine(smi=smi)
    assert _accelerators.find(_apple.processor("")) == []


def test_a_tool_that_is_not_there_tells_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert _accelerators._nvidia_smi() == ""


def test_a_tool_that_fails_tells_nothing(monkeypatch):
    failed = SimpleNamespace(returncode=9, stdout="NVIDIA-SMI has failed, 1, 1.0\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    assert _accelerators._nvidia_smi() == ""


def test_a_mac_has_a_gpu_and_a_neural_engine(machine):
    machine(metal=True)
    gpu, engine = _accelerators.find(_apple.processor(machines.M3))
    assert (gpu.kind, gpu.name, gpu.unused) == ("mps", "Apple M3 GPU", None)
    assert (engine.kind, engine.name, engine.unused) == ("neural engine", "Apple M3 Neural Engine", None)


def test_a_virtual_mac_reaches_no_neural_engine(machine):
    machine(metal=False)
    gpu, engine = _accelerators.find(_apple.processor(machines.M1_VIRTUAL))
    assert "Metal" in gpu.unused
    assert "virtual machine" in engine.unused


def test_an_intel_mac_has_none(machine):
    machine(metal=False)
    assert _accelerators.find(_apple.processor(machines.INTEL_MAC)) == []
