"""The cases that there are beside those of inference."""

from benchmarks.matrix import generators, quantizers
from benchmarks.peers import peer_cases

OTHERS = [
    *(f"generate:{case}" for case in generators()),
    *(f"quantize:{case}" for case in quantizers()),
    *(f"peer:{case}" for case in peer_cases()),
]
