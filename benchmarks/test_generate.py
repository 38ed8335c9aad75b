"""Generation: how fast a language model reads a prompt and goes on with it, one token after the other, with a cache.

pytest benchmarks -m generate
pytest benchmarks -m generate -k 'int4 and onnxruntime'
"""

import pytest


@pytest.mark.generate
def test_generate(case, calibration, workshop, decoders, measurement):
    """Quantize, then go on with held-out prompts beside float: where it would go otherwise, and how long both take."""
    measurement.generate(decoders, workshop.quantize(case, calibration))
