import copy
import importlib.metadata
import json
import os
import sys

import pytest

from benchmarks import environment

INTEL = {"brand_raw": "Xeon", "flags": ["sse", "avx2", "avx512_vnni", "amx_int8"], "hz_actual_friendly": "2.1 GHz"}
MACHINE = {"node": "host", "system": "Linux", "cpu": INTEL}


def test_describe_names_what_times_depend_on():
    described = environment.describe(MACHINE, threads=3)
    assert described["cpu"] == "Xeon"
    assert described["threads"] == 3
    assert described["isa"] == ["amxint8", "avx2", "avx512vnni"]
    assert described["affinity"] >= 1
    assert described["versions"]["torch"] == importlib.metadata.version("torch")
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))


def test_describe_is_plain_json():
    described = environment.describe(MACHINE, threads=1)
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("flags", [["avx512vnni"], ["avx512_vnni"], ["avx512_vnni", "avx512vnni"]])
def test_an_instruction_set_has_one_name_however_it_is_spelt(flags):
    assert environment.describe({"cpu": {"flags": flags}}, 1)["isa"] == ["avx512vnni"]


def test_arm_has_its_instruction_sets():
    assert environment.describe({"cpu": {"flags": ["asimddp", "i8mm", "fp"]}}, 1)["isa"] == ["asimddp", "i8mm"]


@pytest.mark.parametrize("machine", [{}, {"cpu": {}}])
def test_an_unknown_processor_is_described_all_the_same(machine):
    described = environment.describe(machine, 1)
    assert described["isa"] == []
    assert isinstance(described["cpu"], str)


def test_a_package_that_is_absent_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert set(environment.describe(MACHINE, 1)["versions"]) == {"torch"}


def test_what_varies_between_runs_is_dropped():
    first, second = copy.deepcopy(MACHINE), copy.deepcopy(MACHINE)
    second["cpu"]["hz_actual_friendly"] = "3.4 GHz"
    for machine in (first, second):
        environment.drop_varying(machine)
    assert first == second
    assert first["cpu"]["brand_raw"] == "Xeon"
    environment.drop_varying({})


def test_pin_threads_sets_what_libraries_read(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        monkeypatch.setenv(name, "7")
    environment.pin_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "2"
