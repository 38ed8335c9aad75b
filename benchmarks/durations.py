"""What cases took in earlier runs, in pytest's cache: for the minutes to expect, and for spreading work evenly."""

from collections.abc import Iterable

import pytest

from reports.record import Record, record_name

DEFAULT_SECONDS = 8.0
"""What a case is expected to take where no earlier run tells."""
_KEY = "quant/seconds"


def known_seconds(config: pytest.Config) -> dict[str, float]:
    """Return the seconds of cases that ran before, by name."""
    return config.cache.get(_KEY, {}) if hasattr(config, "cache") else {}


def remember(config: pytest.Config, records: Iterable[Record]) -> None:
    measured = {record_name(record): round(record["seconds"], 2) for record in records}
    if measured and hasattr(config, "cache"):
        config.cache.set(_KEY, {**known_seconds(config), **measured})
