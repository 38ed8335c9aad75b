"""Distillation of scales: codes and zero points stay those of ``gptq``, and what they stand for learns.

As "distilled weight quantization" in MLX (mlx-lm, LEARNED_QUANTS.md, 2025): few numbers learn, from the outputs of the
float model, so that little data and few steps are enough. The gains of norms learn as well, which every runtime has in
float: they rescale the columns of the weights that read them, where scales rescale rows.
"""

from collections.abc import Sequence
from dataclasses import replace

from quant.calibrate import Batch
from quant.graph import FloatGraph, QuantizedModel
from quant.methods import gptq
from quant.recipe import Recipe, Training, Validation, unlabelled
from quant.scheme import Scheme
from quant.training import train

METHODS = {
    "distill": {"family": "weight_only", "bits": ("int4", "int3", "int2"), "calibrates": True, "trains": True},
}

STEPS = 600
SCALE_RATE = 6e-3
RATE = 2e-2


def quantize(
    graph: FloatGraph, scheme: Scheme, calibration: Sequence[Batch] = (), training: Training | None = None
) -> QuantizedModel:
    """Return the tables of ``gptq`` distilled on the inputs of ``training``, else of calibration."""
    training = training or unlabelled(calibration)
    start = gptq.quantize(graph, scheme, training.start_data or calibration)
    recipe = Recipe(steps=STEPS, rate=RATE, scale_rate=SCALE_RATE, learns="scales", distance=training.recipe.distance)
    # Judged by the distance from float as well: labels are not looked at.
    validation = training.validation and Validation(training.validation.loader)
    return train(start, replace(training, loss=None, recipe=recipe, validation=validation))
