import copy
import importlib.metadata
import json
import os
import sys

from benchmarks import environment
from benchmarks.matrix import Case
from quant import hardware
from quant.hardware import pages

INTEL = {"brand_raw": "Xeon", "flags": ["sse", "avx2", "avx512_vnni", "amx_int8"], "hz_actual_friendly": "2.1 GHz"}
MACHINE = {"node": "host", "system": "Linux", "cpu": INTEL}


def test_describe_names_what_times_depend_on(monkeypatch):
    processor = hardware.Processor("Xeon", "x86_64", ("amxint8", "avx2", "avx512vnni"), threads=8, allowed=4)
    monkeypatch.setattr(hardware, "processor", lambda: processor)
    described = environment.describe(threads=3)
    assert described["cpu"] == "Xeon"
    assert described["threads"] == 3
    assert described["isa"] == ["amxint8", "avx2", "avx512vnni"]
    assert described["affinity"] == 4
    assert described["versions"]["torch"] == importlib.metadata.version("torch")
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_cap_on_instructions_is_part_of_the_environment(monkeypatch):
    assert "isa_caps" not in environment.describe(threads=1)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert environment.describe(threads=1)["isa_caps"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_huge_pages_are_part_of_the_environment(monkeypatch):
    monkeypatch.setattr(pages, "in_use", lambda: False)
    assert "huge_pages" not in environment.describe(threads=1)
    monkeypatch.setattr(pages, "in_use", lambda: True)
    assert environment.describe(threads=1)["huge_pages"] is True


def test_saturation_is_warned_of_where_codes_of_eight_bits_are_multiplied(monkeypatch):
    old = hardware.Processor("Old", "x86_64", ("avx2",))
    monkeypatch.setattr(hardware, "processor", lambda: old)

    def warned(*names):
        return environment.saturation_warning(Case(*name.split("-")) for name in names)

    assert "no VNNI" in warned("digits-rtn-int4-torch", "digits-static-int8-onnxruntime")
    assert "no VNNI" in warned("minilm-native_dynamic-int8-onnxruntime")
    assert warned("digits-static-int8_reduced-onnxruntime", "digits-rtn-int8-torch", "digits-static-int8-mlx") is None
    assert warned() is None
    monkeypatch.setattr(hardware, "processor", lambda: hardware.Processor("New", "x86_64", ("avx2", "avx512vnni")))
    assert warned("digits-static-int8-onnxruntime") is None


def test_the_chip_has_the_name_that_pytest_benchmark_gives_it():
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info

    assert environment.describe(1)["cpu"] == pytest_benchmark_generate_machine_info()["cpu"]["brand_raw"] != ""


def test_describe_is_plain_json():
    described = environment.describe(threads=1)
    assert json.loads(json.dumps(described)) == described


def test_a_package_that_is_absent_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert set(environment.describe(1)["versions"]) == {"torch"}


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
