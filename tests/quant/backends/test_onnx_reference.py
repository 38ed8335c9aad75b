"""The static model is standard ONNX: its reference implementation gives the runtime's answers."""

import numpy as np
import pytest
import torch
from torch import nn

import quant

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.hidden, self.head = nn.Linear(8, 24), nn.Linear(24, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(image))
        return self.head(torch.relu(self.hidden((stem + self.branch(stem)).mean((2, 3)))))


@pytest.mark.parametrize("method", ["static_plain", "static", "smoothquant"])
def test_the_reference_implementation_of_onnx_gives_the_same_best_class(tmp_path, method):
    from onnx.reference import ReferenceEvaluator

    torch.manual_seed(0)
    images = torch.randn(48, 1, 6, 6) * torch.rand(48, 1, 1, 1) * 3
    graph = quant.capture(Classifier().eval(), (images[:2],))
    executable = quant.compile(quant.quantize(graph, method, "int8", [(images[:16],)]), "onnxruntime", tmp_path)
    session = ReferenceEvaluator(str(executable.path))
    (expected,) = session.run(None, dict(zip(session.input_names, [images.numpy()], strict=True)))
    (found,) = executable(images.numpy())
    assert np.linalg.norm(found - expected) <= 2e-2 * np.linalg.norm(expected)
    first, second = np.sort(expected, axis=1)[:, :-3:-1].T
    decided = first - second > 2e-2 * np.abs(expected).max()  # where two classes tie, either is right
    assert decided.sum() > 24
    assert np.array_equal(found.argmax(1)[decided], expected.argmax(1)[decided])
