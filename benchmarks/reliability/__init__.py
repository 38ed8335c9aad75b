"""Is the gate itself to be trusted: how often it calls a loss where there is none, and misses one that was planted.

``populations`` draws comparisons whose true difference is known from outcomes that were measured; ``faults`` breaks
quantized models in ways that happen; ``campaigns`` runs comparisons by the hundred and counts. ``test_gate.py`` asserts
the rates, and ``python -m reports reliability`` publishes them.
"""
