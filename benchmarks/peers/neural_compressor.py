"""Intel Neural Compressor on PyTorch: rounding to nearest, GPTQ and AWQ of the linear layers."""

from collections.abc import Callable

import torch
from neural_compressor.torch.quantization import GPTQConfig, RTNConfig, convert
from neural_compressor.torch.quantization import prepare as observe

from benchmarks.child import Outputs, Subject

PACKAGES = {"neural_compressor": "pip install neural-compressor"}
VARIANTS = {
    "neural_compressor_rtn": {"bits": "int4_g128"},
    "neural_compressor_gptq": {"bits": "int4_g128"},
}


def prepare(subject: Subject) -> Callable[[], Outputs]:
    format, module = subject.scheme.linear, subject.module
    config = {"rtn": RTNConfig, "gptq": GPTQConfig}[subject.job.method.rpartition("_")[2]](
        bits=format.bits, use_sym=False, group_size=format.group_size, model_path=subject.job.graph
    )

    def work() -> Outputs:
        observed = observe(module, config, inplace=False)
        with torch.no_grad():
            for batch in subject.calibration:
                observed(*batch)
        return convert(observed)

    return work
