"""AutoRound: rounding and clipping learned by signed gradient descent, block by block, with its own defaults.

It takes models of Hugging Face's form alone, so the encoder is put into that form.
"""

from collections.abc import Callable

import torch
from auto_round import AutoRound
from torch import Tensor, nn
from transformers import PretrainedConfig

from benchmarks.child import Outputs, Subject

PACKAGES = {"auto_round": "pip install auto-round", "transformers": "pip install transformers"}
VARIANTS = {"auto_round": {"bits": "int4_g128"}}

_BATCH = 8
"""AutoRound's own batch; samples that come in larger ones it refuses."""


def prepare(subject: Subject) -> Callable[[], Outputs]:
    format, model = subject.scheme.linear, _Encoder(subject.module, subject.job.graph)
    scheme = {"data_type": "int", "bits": format.bits, "group_size": format.group_size, "sym": False, "act_bits": 16}
    parts = [part for batch in subject.calibration for part in zip(*(v.split(_BATCH) for v in batch), strict=True)]
    data = [{"input_ids": ids, "attention_mask": mask} for ids, mask in parts]
    count, length = sum(len(ids) for ids, _ in parts), parts[0][0].shape[1]
    # The tokenizer is asked for, and used only where the data are texts.
    settings = {"tokenizer": object(), "dataset": data, "nsamples": count, "seqlen": length, "batch_size": _BATCH}

    def work() -> Outputs:
        return AutoRound(model, scheme=scheme, device_map="cpu", **settings).quantize()[0]

    return work


class _Encoder(nn.Module):
    """An encoder with a list of ``layers``, as AutoRound calls and inspects a model of Hugging Face's."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, encoder: nn.Module, folder: str) -> None:
        super().__init__()
        self.config, self.name_or_path = PretrainedConfig(), folder
        self.config._name_or_path = folder
        encoder.layers = nn.ModuleList(map(_Layer, encoder.layers))
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **ignored: object) -> Tensor:
        return self.encoder(input_ids, attention_mask)


class _Layer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, additive_mask: Tensor, **ignored: object) -> Tensor:
        return self.layer(hidden_states, additive_mask)
