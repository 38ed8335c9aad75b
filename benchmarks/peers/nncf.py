"""NNCF, OpenVINO's own quantizers: weight compression with and without data, and static W8A8 with SmoothQuant.

What they make runs on OpenVINO, with activations kept in float32 where only weights are quantized. Its AWQ has no case:
it looks for a norm to fold scales into, finds none in a post-norm encoder, and leaves what plain compression makes.
"""

from collections.abc import Callable

import nncf
import numpy as np
import openvino
from torch import Tensor

from benchmarks.child import Batch, Outputs, Subject

PACKAGES = {"nncf": "pip install nncf", "openvino": "pip install openvino"}
VARIANTS = {
    "nncf": {"bits": "int4_g128"},
    "nncf_scale_estimation": {"bits": "int4_g128", "options": {"scale_estimation": True}},
    "nncf_gptq": {"bits": "int4_g128", "options": {"gptq": True}},
    "nncf_smoothquant": {"bits": "int8", "family": "static"},
}

_IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def prepare(subject: Subject) -> Callable[[], Outputs]:
    """Convert the model to OpenVINO, which its quantizers start from; only they are timed."""
    example = subject.calibration[0]
    model = openvino.convert_model(subject.module, example_input=example)
    data = nncf.Dataset(_samples(subject.calibration))
    variant = VARIANTS[subject.job.method]
    quantize = _quantize if variant.get("family") == "static" else _compress

    def work() -> Outputs:
        return _Compiled(quantize(model, data, subject, variant.get("options", {})))

    return work


def _compress(model: openvino.Model, data: nncf.Dataset, subject: Subject, options: dict) -> openvino.Model:
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=subject.scheme.linear.group_size,
        ratio=1.0,
        all_layers=True,
        ignored_scope=nncf.IgnoredScope(types=["Gather"]),
        dataset=data if options else None,
        **options,
    )


def _quantize(model: openvino.Model, data: nncf.Dataset, subject: Subject, options: dict) -> openvino.Model:
    count = sum(len(batch[0]) for batch in subject.calibration)
    settings = {"model_type": nncf.ModelType.TRANSFORMER, "fast_bias_correction": True}
    return nncf.quantize(model, data, subset_size=count, **settings)


def _samples(batches: list[Batch]) -> list[list[np.ndarray]]:
    """Return the inputs of one sample at a time, as NNCF counts them."""
    return [[values[i : i + 1].numpy() for values in batch] for batch in batches for i in range(len(batch[0]))]


class _Compiled:
    """The model compiled at its first call, so that compiling is no part of quantizing."""

    def __init__(self, model: openvino.Model) -> None:
        self._model, self._compiled = model, None

    def __call__(self, *batch: Tensor) -> np.ndarray:
        if self._compiled is None:
            self._compiled = openvino.Core().compile_model(self._model, "CPU", _IN_FLOAT32)
        return self._compiled([values.numpy() for values in batch])[0]
