"""The hook through which a user adds figures to records."""

import pytest


@pytest.hookspec
def pytest_quant_record(config: pytest.Config, record: dict) -> None:
    """Add to, or look at, the record of a case after it was measured and before it is saved.

    ``record`` is the dictionary described in ``reports/record.py``. Put figures of your own under a key of your own,
    in plain JSON types. In a ``conftest.py``:

        def pytest_quant_record(config, record):
            seconds = record["speed"].get("p50")  # None where it was not timed
            record["carbon"] = {"grams": 0.4e-3 * seconds} if seconds else {"reason": "not timed"}
    """
