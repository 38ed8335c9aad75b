"""This machine, and the command that prints it."""

import subprocess
import sys
from dataclasses import replace

import pytest

from quant import hardware
from quant.__main__ import main
from quant.commands.hardware import facts
from quant.hardware import Accelerator, bandwidth


def test_this_machine_is_described():
    machine = hardware.machine()
    assert machine.processor is hardware.processor()
    assert machine.processor.name
    assert machine.processor.allowed >= 1
    assert set(machine.processor.features) <= set(hardware.FEATURES)


def test_the_processor_is_found_without_torch_and_numpy():
    code = "import sys; from quant import hardware; hardware.processor(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_command_prints_facts_and_what_follows(capsys, monkeypatch):
    monkeypatch.setattr(bandwidth, "measure", lambda machine: bandwidth.Bandwidth(1e10, 2e10, 2, False))
    assert main(["hardware"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "processor     ",
        "instructions  ",
        "cores         ",
        "bandwidth     10.0 GB/s",
        "What follows",
        "- A language",
        "What suits each target here",
        "- torch: ",
    ):
        assert f"\n{line}" in f"\n{printed}"


def test_every_accelerator_is_a_fact_with_what_is_known_of_it():
    bare = hardware.machine()
    assert [value for name, value in facts(replace(bare, accelerators=())) if name == "accelerators"] == ["none"]
    found = (Accelerator("cuda", "NVIDIA T4", 16 * 2**30, (7, 5)), Accelerator("mps", "Apple M1"))
    printed = dict(facts(replace(bare, accelerators=found)))
    assert printed["cuda"] == "NVIDIA T4, 16 GiB, compute capability 7.5"
    assert printed["mps"] == "Apple M1"
    assert "accelerators" not in printed


@pytest.mark.parametrize("arguments", [["--help"], ["hardware", "--help"]])
def test_help_teaches(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "what follows for quantized models" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["hardwear"])
    assert stopped.value.code == 2
    assert "hardware" in capsys.readouterr().err
