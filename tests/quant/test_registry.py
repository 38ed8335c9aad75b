import sys

import pytest

from quant import registry
from quant.backends import target, targets
from quant.methods import method, methods
from quant.registry import find, missing, nearest, scan

GOOD = '''"""Does one thing well.

And says more about it.
"""

import a_module_that_is_not_installed

NAMES = {"good": {"bits": ("int8", "int4")}}
COMPUTED = sorted(NAMES)
_HIDDEN = 1
lower = 2
LIMIT = -1.5
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "plain.py").write_text("def helper():\n    NOT_AT_TOP_LEVEL = 1\n")
    (tmp_path / "_private.py").write_text("NAMES = 1\n")
    (tmp_path / "__init__.py").write_text("NAMES = 1\n")
    (tmp_path / "notes.txt").write_text("NAMES = 1\n")
    (tmp_path / "bare.py").write_text("FLAG = True\n")
    return tmp_path


def test_scan_lists_the_modules_with_constants_by_name(folder):
    assert list(scan(folder, "example")) == ["bare", "good"]


def test_scan_reads_literal_constants_without_importing(folder):
    entry = scan(folder, "example")["good"]
    assert entry.constants == {"NAMES": {"good": {"bits": ("int8", "int4")}}, "LIMIT": -1.5}
    assert entry.summary == "Does one thing well."
    assert entry.module == "example.good"
    assert "example.good" not in sys.modules


def test_an_entry_without_docstring_has_no_summary(folder):
    assert scan(folder, "example")["bare"].summary == ""


def test_load_imports_the_module(tmp_path, monkeypatch):
    package = tmp_path / "registry_example"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "entry.py").write_text("NAME = 'entry'\nCOMPUTED = NAME.upper()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert scan(package, "registry_example")["entry"].load().COMPUTED == "ENTRY"


def test_an_empty_folder_has_no_entries(tmp_path):
    assert scan(tmp_path, "example") == {}


def test_find_returns_the_entry():
    assert find({"rtn": 1}, "rtn", "method") == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rtm", "unknown method 'rtm': did you mean rtn?"),
        ("xyz", "unknown method 'xyz': known are rtn, static."),
        ("", "unknown method '': known are rtn, static."),
    ],
)
def test_find_refuses_an_unknown_name_with_the_nearest_ones(name, sentence):
    with pytest.raises(ValueError) as error:
        find({"rtn": 1, "static": 2}, name, "method")
    assert str(error.value) == sentence


def test_nearest_names_at_most_three():
    sentence = nearest("int", ["int8", "int6", "int4", "int2"])
    assert sentence.startswith("did you mean int")
    assert sentence.count(" or ") == 2


def test_nearest_takes_any_iterable():
    assert nearest("zz", iter(["one", "two"])) == "known are one, two."


def test_missing_names_each_command_once():
    packages = {"json": "pip install json", "no_such_one": "pip install both", "no_such_two": "pip install both"}
    assert missing(packages) == "pip install both"
    assert missing({**packages, "no_such_three": "pip install third"}) == "pip install both && pip install third"


@pytest.mark.parametrize("packages", [{}, {"json": "pip install json"}])
def test_nothing_is_missing(packages):
    assert missing(packages) is None


def test_methods_and_targets_are_named_once_and_fit_ids():
    for name in (*methods(), *targets()):
        assert name.isidentifier()
        assert "-" not in name
        assert name == name.lower()


@pytest.mark.parametrize("name", methods())
def test_method_constants(name):
    found = method(name)
    assert found.bits
    assert set(found.core) <= set(found.bits)
    assert len(set(found.bits)) == len(found.bits)
    assert found.entry.summary


@pytest.mark.parametrize("name", targets())
def test_target_constants(name):
    found = target(name)
    assert found.platform in (None, "darwin", "linux")
    assert found.constant("REQUIRES")
    packages = {**found.constant("REQUIRES"), **found.constant("NATIVE_REQUIRES", {})}
    assert all(command.startswith("pip install ") for command in packages.values())
    assert set(found.constant("NATIVE", {})) <= {name for name, entry in methods().items() if entry.native}
    for offered in found.constant("NATIVE", {}).values():
        assert all(isinstance(quantizer, str) and quantizer for quantizer in offered.values())
    families = {entry.family for entry in methods().values()}
    assert set(found.constant("EXECUTES")) <= families
    assert found.entry.summary


def test_unknown_methods_and_targets_name_the_nearest():
    with pytest.raises(ValueError, match=r"unknown method 'statik': did you mean static"):
        method("statik")
    with pytest.raises(ValueError, match=r"unknown backend 'opnvino': did you mean openvino\?"):
        target("opnvino")


@pytest.mark.parametrize(("here", "refused"), [("linux", True), ("darwin", False), ("win32", True)])
def test_a_platform_bound_target_says_where_it_exists(monkeypatch, here, refused):
    monkeypatch.setattr(sys, "platform", here)
    assert target("coreml_ane").elsewhere() == ("coreml_ane exists only on macOS" if refused else None)
    assert target("torch").elsewhere() is None


def test_a_target_names_the_command_for_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(registry, "_installed", lambda package: package not in {"onnx_ir", "onnxruntime"})
    assert target("onnxruntime").missing().startswith("pip install onnxruntime")
    assert target("onnxruntime").missing().count("pip install") == 1
