"""W8A8 without zero points, for products of signed factors alone.

ONNX Runtime computes what it means, but not in integers: it takes a ReLU for saturation at code 0 alone.
"""

import numpy as np
import pytest
import torch

from quant.graph import QuantizedModel, simulate
from quant.methods import quantize

BACKENDS = ("coreml", "onnxruntime", "openvino")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, residual_graph, with_template):
    return with_template(request.param, residual_graph)


def test_it_means_the_same_and_is_as_good_as_what_kernels_compute(backend, residual_graph, tmp_path):
    where, template = backend
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    quantized = quantize(residual_graph, "static", "int8_sym", [(images,)])
    assert all(entry.zero_point is None for entry in quantized.activations.values())
    where.load().compile(quantized, template, tmp_path)
    executable = where.load().load(tmp_path, 1, None)
    with torch.inference_mode():
        expected = simulate(quantized)(images[:2])[0].numpy()
        real = simulate(QuantizedModel(residual_graph, quantized.scheme))(images[:2])[0].numpy()
    found = executable(images[:2].numpy())[0]
    assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)
    assert 1e-3 < np.linalg.norm(found - real) / np.linalg.norm(real) < 0.1
    if "int8_sym" in where.constant("EXECUTES")["static"]:
        assert executable.coverage()["operators_native"] > 0.9
