"""Peers: another library's quantizer against ours, with the same model, data, bits, groups and evaluation.

pip install -e '.[peers]'
pytest benchmarks -m peer
"""

import pytest


@pytest.mark.peer
def test_peer(case, trials, measurement):
    """Try the peer, and every method of ours that makes the same numbers, once a run; name the one that answers it."""
    measurement.compare(trials)
