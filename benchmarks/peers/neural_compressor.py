"""Intel Neural Compressor on PyTorch: rounding to nearest, and GPTQ, of the linear layers."""

from collections.abc import Callable

import torch
from neural_compressor.torch import quantization

from benchmarks.child import Outputs, Subject

PACKAGES = {
    "neural_compressor": "pip install 'neural-compressor[pt]'",
    "prettytable": "pip install 'neural-compressor[pt]'",
}
VARIANTS = {
    "neural_compressor_rtn": {"bits": "int4_g128", "config": "RTNConfig", "calibrates": False},
    "neural_compressor_gptq": {"bits": "int4_g128", "config": "GPTQConfig", "calibrates": True},
}


def prepare(subject: Subject) -> Callable[[], Outputs]:
    format, module, variant = subject.scheme.linear, subject.module, VARIANTS[subject.job.method]
    settings = {"bits": format.bits, "group_size": format.group_size, "use_sym": False}
    config = getattr(quantization, variant["config"])(**settings)
    if variant["calibrates"]:
        # It wants a folder that exists, though it reads it for models too large for memory alone.
        config.model_path = subject.job.graph

    def work() -> Outputs:
        observed = quantization.prepare(module, config, inplace=False)
        if variant["calibrates"]:
            with torch.no_grad():
                for batch in subject.calibration:
                    observed(*batch)
        return quantization.convert(observed)

    return work
