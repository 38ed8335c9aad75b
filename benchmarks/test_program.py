"""The integer program of mixed precision at the size of a large model: how long it takes.

pytest benchmarks/test_program.py
"""

import pytest

LAYERS, CHOICES = 300, 6
MOST_SECONDS = 2.0
BUDGETS = (3.1, 4.5, 6.7)


@pytest.mark.quantize
@pytest.mark.core
@pytest.mark.parametrize("bits", BUDGETS)
def test_program(benchmark, bits):
    """Solve for layers of many sizes and sensitivities, of which some choose together."""
    import numpy as np

    from quant.mixed import Problem, least_error

    generator = np.random.default_rng(0)
    widths = np.array([16.0, 8, 6, 4, 3, 2])
    sizes, hurt = generator.integers(1, 500, LAYERS), generator.lognormal(0, 2, LAYERS)
    noise = generator.uniform(0.5, 2, (LAYERS, CHOICES))
    together = tuple((first, first + 1, first + 2) for first in range(0, LAYERS, 12))
    problem = Problem(hurt[:, None] * 4.0**-widths * noise, sizes[:, None] * widths, together)
    budget = bits * sizes.sum()
    chosen = benchmark(least_error, problem, budget)
    assert problem.total_cost(chosen) <= budget * (1 + 1e-6)
    if not benchmark.disabled:
        assert benchmark.stats.stats.max <= MOST_SECONDS
