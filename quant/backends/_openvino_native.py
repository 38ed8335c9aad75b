"""NNCF, the quantizers that OpenVINO's documentation names, with the settings it recommends.

https://docs.openvino.ai/2026/openvino-workflow/model-optimization.html: activations and weights by ``nncf.quantize``
with fast bias correction, and its scheme for transformers (with SmoothQuant) where there is attention; weights alone by
``nncf.compress_weights``.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence

import nncf
import numpy as np
import openvino
from nncf.common.logging.logger import nncf_logger, set_log_level

Batch = tuple[np.ndarray, ...]

_GROUP_SIZE = 32
_WEIGHTS_ALONE = {
    ("native", "int8"): {"mode": nncf.CompressWeightsMode.INT8_ASYM},
    ("native", "int4"): {
        "mode": nncf.CompressWeightsMode.INT4_ASYM,
        "group_size": _GROUP_SIZE,
        "advanced_parameters": nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    },
    ("native_dynamic", "int8"): {"mode": nncf.CompressWeightsMode.INT8_SYM},
}
_ERROR = 40  # as logging numbers its levels


def quantize(method: str, bits: str, model: openvino.Model, calibration: Sequence[Batch]) -> openvino.Model:
    """Return what NNCF makes of ``model``.

    Raises:
        ValueError: it needs calibration data and got none.
    """
    if method == "native_static" and not calibration:
        raise ValueError("nncf.quantize needs calibration data: pass at least one batch of inputs.")
    with _silent():
        if method != "native_static":
            return nncf.compress_weights(model, **_WEIGHTS_ALONE[method, bits])
        samples = [tuple(part[i : i + 1] for part in batch) for batch in calibration for i in range(len(batch[0]))]
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER if _has_attention(model) else None,
        )


def _has_attention(model: openvino.Model) -> bool:
    """Whether a product follows a softmax."""
    return any(
        user.get_node().get_type_name() == "MatMul"
        for node in model.get_ops()
        if node.get_type_name() == "Softmax"
        for user in node.output(0).get_target_inputs()
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep NNCF from reporting: it has a logger of its own, and bars of progress."""
    level = nncf_logger.level
    set_log_level(_ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        set_log_level(level)
