"""ONNX Runtime's own quantizers, with the settings its documentation recommends for CPUs.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html: models are first prepared by
quant_pre_process; W8A8 is U8S8 with weights per channel; weights of few bits are block-wise, for kernels that quantize
their activations to 8 bits inside.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process

from quant.backends._onnx_session import quiet
from quant.backends._onnx_template import MODEL, read, save

Batch = tuple[np.ndarray, ...]

_BLOCK_SIZE = 32
_INTEGER_INPUTS = 4
_QUANTIZED = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}


def quantize(method: str, bits: str, template: Path, target: Path, calibration: Sequence[Batch]) -> None:
    """Write what the runtime's quantizer for ``method`` makes of ``template`` to the file ``target``.

    Raises:
        ValueError: the quantizer found nothing to quantize, or needs calibration data and got none.
    """
    if method == "native_static" and not calibration:
        raise ValueError("quantize_static needs calibration data: pass at least one batch of inputs.")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        save(read(template).model, Path(folder))
        prepared = str(Path(folder) / "prepared.onnx")
        # Symbolic shape inference gives up on some exports; torch has recorded the shapes already.
        quant_pre_process(str(Path(folder) / MODEL), prepared, skip_symbolic_shape=True)
        if method == "native":
            _quantize_blocks(prepared, target, int(bits.removeprefix("int")))
        elif method == "native_dynamic":
            quantize_dynamic(prepared, target, per_channel=True, weight_type=QuantType.QInt8)
        else:
            _quantize_static(prepared, target, calibration)
    model = onnx.load(target)
    if not any(tensor.data_type in _QUANTIZED for tensor in model.graph.initializer):
        raise ValueError(f"ONNX Runtime's quantizer for {method} {bits} found nothing to quantize in this model.")
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(template / MODEL, load_external_data=False).metadata_props)
    onnx.save(model, target)


def _quantize_blocks(prepared: str, target: Path, bits: int) -> None:
    model = ONNXModel(onnx.load(prepared))
    model.replace_gemm_with_matmul()
    config = DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK_SIZE,
        accuracy_level=_INTEGER_INPUTS,
        # Its embeddings are 4 bits, whatever it is asked for.
        op_types_to_quantize=("MatMul", "Gather") if bits == 4 else ("MatMul",),
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(model.model, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)


def _quantize_static(prepared: str, target: Path, calibration: Sequence[Batch]) -> None:
    inputs = [value.name for value in onnx.load(prepared, load_external_data=False).graph.input]
    quantize_static(
        prepared,
        target,
        _Batches(inputs, calibration),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class _Batches(CalibrationDataReader):
    def __init__(self, inputs: Sequence[str], batches: Sequence[Batch]) -> None:
        self._feeds = (
            {name: np.asarray(array) for name, array in zip(inputs, batch, strict=True)} for batch in batches
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
