"""Quantizers: what each costs in time and memory, on whole models and on a layer of a large one.

pytest benchmarks -m quantize -k 'minilm and int4'
pytest benchmarks -m quantize -k linear_4096
"""

import pytest


@pytest.mark.quantize
def test_quantize(case, trials, measurement):
    """Quantize in a fresh process, on one thread, with the graph and the data loaded; never from the cache."""
    measurement.quantize(trials)
