import subprocess
import sys

import pytest

pytest.importorskip("coremltools")

from quant.backends._coreml_package import _absent


def test_packages_that_are_absent_are_so_for_others_imports_and_not_for_ones_imported_before(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with _absent("colorsys", "sys", "no_such_package"):
        with pytest.raises(ImportError):
            import colorsys
        import sys as imported_before

        assert imported_before is sys
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 1) == (2 / 3, 1, 1)
    assert "no_such_package" not in sys.modules


def test_coremltools_imports_no_library_whose_models_are_not_converted():
    program = """
import sys
from quant.backends._coreml_package import coremltools
coremltools().converters.mil
print([name for name in ("sklearn", "torchao", "torchvision", "transformers") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
