import sys

import pytest

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
