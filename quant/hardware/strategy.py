"""What follows from a machine for quantized models on it, in sentences.

Instruction sets: Intel's and Arm's manuals (VPDPBUSD adds four u8 x s8 products in 32 bits, VPMADDUBSW two in 16 bits
that saturate; SDOT and SMMLA take s8 x s8). Neural Engine and W8A8: the guide of coremltools ("accelerated on NE for
A17 Pro/M4 chips"). CUDA: the compute capabilities that brought int8, bf16, fp8 and fp4 to its matrix units.
"""

import re

from quant.hardware._parts import Accelerator, Machine, Processor
from quant.hardware.bandwidth import Bandwidth
from quant.hardware.saturation import saturates

_STORED_BITS = {"int4": 5, "int8": 9, "fp32": 32}
"""Bits per weight, with a scale and a zero point of 16 bits each for every group of 32."""
_FIRST_INT8_NEURAL_ENGINE = 4
_INT8, _BF16, _FP8, _FP4 = (7, 5), (8, 0), (8, 9), (10, 0)


def consequences(machine: Machine) -> list[str]:
    """Return a sentence for each thing worth knowing before a scheme and a runtime are chosen."""
    processor = machine.processor
    sentences = [_int8(processor), *_floats(processor), *_threads(processor)]
    sentences += [_accelerator(accelerator, processor) for accelerator in machine.accelerators]
    if processor.apple:
        sentences.append(
            "Unified memory: processor, GPU and Neural Engine read one copy of the weights, so a memory-mapped "
            "artefact need not be copied for any of them."
        )
    return sentences


def tokens_per_second(bandwidth: Bandwidth) -> str:
    """Return what the bandwidth bounds: a language model reads every weight for every token that it writes."""
    limits = (f"{8 * bandwidth.all_threads / (1e9 * bits):.3g} at {word}" for word, bits in _STORED_BITS.items())
    return (
        "A language model reads every weight for every token, so for each billion of its parameters memory allows "
        f"about {', '.join(limits)} tokens per second: where little else is computed, fewer bits are more speed."
    )


def _int8(processor: Processor) -> str:
    if processor.has("avx512vnni", "avxvnni"):
        tiles = " AMX multiplies them in tiles where a runtime has kernels for it." if processor.has("amxint8") else ""
        return (
            "int8 is native: u8 activations times s8 weights per channel (`int8` with static, smoothquant or dynamic) "
            f"run on VNNI without saturating. ONNX Runtime's s8 x s8 and u8 x u8 do not reach it.{tiles}"
        )
    if processor.has("amxint8"):
        return "int8 is native on AMX, in tiles of u8 or s8 activations times s8 weights, without saturating."
    if saturates(processor):
        return (
            "int8 without VNNI: u8 x s8 kernels add two products in 16 bits and saturate. Keep weights to 7 bits "
            "(`int8_reduced`; `reduce_range` in ONNX Runtime's quantizers) or expect less accuracy; the gain over "
            "float is below what VNNI gives."
        )
    if processor.has("i8mm"):
        return (
            "int8 is native: s8 x s8 and u8 x s8 run on i8mm, so activations may be of either sign; weights symmetric "
            "per channel."
        )
    if processor.has("asimddp"):
        return "int8 is native for s8 x s8 (dotprod): symmetric weights per channel and s8 activations; u8 x s8 is not."
    return "No int8 dot products are known here: int8 saves memory, hardly time."


def _floats(processor: Processor) -> list[str]:
    sentences = []
    if processor.has("avx512bf16", "amxbf16", "bf16"):
        sentences.append("bf16 products have instructions: `bf16` can be faster than fp32 where a runtime uses them.")
    elif processor.features:
        sentences.append("bf16 products are emulated: `bf16` saves memory and costs time.")
    if processor.has("avx512fp16", "amxfp16", "asimdhp"):
        sentences.append("fp16 arithmetic is native.")
    elif processor.features:
        sentences.append("fp16 is a storage type here: runtimes convert it, or compute slowly.")
    return sentences


def _threads(processor: Processor) -> list[str]:
    sentences = []
    efficiency = sum(cores.count for cores in processor.cores[1:])
    if efficiency:
        fast = processor.cores[0]
        sentences.append(
            f"{fast.count} of {fast.count + efficiency} cores are fast ({fast.kind}): more threads than those wait for "
            "the slowest, so measure with as many at most."
        )
    usable = min(filter(None, (processor.allowed, processor.quota)), default=None)
    if usable and processor.threads and usable < processor.threads:
        sentences.append(
            f"This process gets {usable:g} of {processor.threads} processors (affinity or container): more threads "
            "only take turns."
        )
    if processor.virtual:
        sentences.append("This is a virtual machine: neighbours may slow it, so trust ratios measured together.")
    return sentences


def _accelerator(accelerator: Accelerator, processor: Processor) -> str:
    if accelerator.unused:
        return f"{accelerator.name} is out of reach: {accelerator.unused}."
    if accelerator.kind == "neural engine":
        return _neural_engine(processor)
    if accelerator.kind == "mps":
        return (
            "GPU under Metal: MLX has kernels for affine groups of 32 to 128 weights (`int4`, `int8` of weight-only "
            "methods); int8 activations gain nothing."
        )
    number_formats = {_INT8: "int8 (W8A8)", _BF16: "bf16", _FP8: "fp8 (`e4m3`)", _FP4: "fp4 (`mxfp4`, `nvfp4`)"}
    native = [name for least, name in number_formats.items() if (accelerator.capability or (0, 0)) >= least]
    listed = ", ".join(native) if native else "none of int8, bf16, fp8 and fp4"
    return f"{accelerator.name}: its matrix units take {listed}."


def _neural_engine(processor: Processor) -> str:
    generation = re.search(r"\bM(\d+)", processor.name)
    integer = bool(generation) and int(generation[1]) >= _FIRST_INT8_NEURAL_ENGINE
    w8a8 = "symmetric W8A8 computes in int8" if integer else "W8A8 computes in fp16 and gains nothing over int8 weights"
    return f"Neural Engine (Core ML): palettes of 4 and 6 bits and int8 weights per channel load faster; {w8a8}."
