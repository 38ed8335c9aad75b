"""AutoRound: rounding learned by signed gradient descent, block by block."""

from collections.abc import Callable

import torch
from auto_round import AutoRound

from benchmarks.child import Outputs, Subject

PACKAGES = {"auto_round": "pip install auto-round"}
VARIANTS = {"auto_round": {"bits": "int4_g128"}}


def prepare(subject: Subject) -> Callable[[], Outputs]:
    format = subject.scheme.linear
    scheme = {"bits": format.bits, "group_size": format.group_size, "sym": False}

    data = [{"input_ids": batch[0], "attention_mask": batch[1]} for batch in subject.calibration]

    def work() -> Outputs:
        rounder = AutoRound(
            subject.module, object(), scheme=scheme, dataset=data, device_map="cpu", seqlen=128, nsamples=128
        )
        model, _ = rounder.quantize()
        return model

    return work
