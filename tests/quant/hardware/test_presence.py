import shutil
import sys
from pathlib import Path

import pytest

from quant.backends import target
from quant.hardware import presence


@pytest.fixture(autouse=True)
def forgotten():
    """Each test looks anew, and leaves nothing behind."""
    presence.lacking.cache_clear()
    yield
    presence.lacking.cache_clear()


def test_a_card_is_known_by_what_its_driver_makes(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(presence, "_NVIDIA", (tmp_path / "version",))
    assert target("torch_cuda").elsewhere() == "torch_cuda needs an NVIDIA GPU and its driver, which are not here"
    (tmp_path / "version").touch()
    presence.lacking.cache_clear()
    assert target("torch_cuda").elsewhere() is None


def test_a_mac_has_no_cuda(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "NVIDIA" in target("onnxruntime_cuda").elsewhere()


def test_a_compiler_may_have_any_name(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-compiler" else None)
    monkeypatch.setenv("CXX", "my-compiler")
    assert target("torch_compile").elsewhere() is None
    presence.lacking.cache_clear()
    monkeypatch.delenv("CXX")
    assert target("torch_compile").elsewhere().startswith("torch_compile needs a C++ compiler")


def test_a_build_is_known_by_its_files(monkeypatch):
    assert presence.holds("quant", "backends/mlx.py")
    assert not presence.holds("quant", "backends/*.so")
    assert not presence.holds("no_such_package", "*")
    monkeypatch.setattr("quant.backends.holds", lambda package, pattern: False)
    assert "CUDA" in target("torch_cuda").missing()
    assert target("torch").missing() is None


def test_looking_imports_no_runtime():
    assert Path(presence.__file__).read_text().count("import torch") == 0
