"""What follows from a machine for quantized models on it, in sentences, and which words suit which target there.

Instruction sets: Intel's and Arm's manuals (VPDPBUSD adds four u8 x s8 products in 32 bits, VPMADDUBSW two in 16 bits
that saturate; SDOT and SMMLA take s8 x s8). Neural Engine and W8A8: the guide of coremltools ("accelerated on NE for
A17 Pro/M4 chips"). CUDA: the compute capabilities that brought int8, bf16, fp8 and fp4 to its matrix units.
"""

import re
from dataclasses import dataclass

from quant.hardware import pages
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
    if machine.memory.huge_pages is False:
        sentences.append(
            f"Memory comes in small pages: started with {pages.ASK}, a program asks for huge ones, in which "
            "weights of hundreds of MB are read faster, and two sessions of one model alike."
        )
    if processor.apple:
        sentences.append(
            "Unified memory: processor, GPU and Neural Engine read one copy of the weights, so a memory-mapped "
            "artefact need not be copied for any of them."
        )
    return sentences


@dataclass(frozen=True)
class Suited:
    """What is worth trying on a target: family of methods -> words for bits, the most promising first; and why."""

    words: dict[str, tuple[str, ...]]
    why: str


def suited(target: str, machine: Machine) -> Suited | None:
    """Return what suits a target by the facts of the machine, None where nothing is known of it beforehand."""
    return _SUITED[target](machine.processor) if target in _SUITED else None


def tokens_per_second(bandwidth: Bandwidth) -> str:
    """Return what the bandwidth bounds: a language model reads every weight for every token that it writes."""
    limits = (f"{8 * bandwidth.all_threads / (1e9 * bits):.3g} at {word}" for word, bits in _STORED_BITS.items())
    return (
        "A language model reads every weight for every token, so for each billion of its parameters memory allows "
        f"about {', '.join(limits)} tokens per second: where little else is computed, fewer bits are more speed."
    )


def _on_processor(processor: Processor) -> Suited:
    blocks = {"weight_only": ("int4", "int8")}
    if saturates(processor):
        reduced = {"static": ("int8_reduced",), "dynamic": ("int8_reduced",)}
        return Suited(reduced | blocks, "u8 x s8 products saturate without VNNI, and do not with weights of 7 bits")
    if not processor.has("avx512vnni", "avxvnni", "amxint8", "asimddp", "i8mm"):
        return Suited(blocks, "no int8 dot products are known here, so fewer bits save memory alone")
    both = {"static": ("int8",), "dynamic": ("int8",)}
    signs = "s8 x s8" if processor.has("asimddp", "i8mm") else "u8 x s8"
    return Suited(both | blocks, f"{signs} products with weights symmetric per channel have instructions")


def _on_openvino(processor: Processor) -> Suited:
    suited = _on_processor(processor)
    if not processor.has("amxint8"):
        return suited
    words = suited.words | {"static": ("int8_sym", *suited.words["static"])}
    return Suited(words, f"{suited.why}, and AMX those of s8 x s8, where no zero points of inputs are put right")


def _on_mlx(processor: Processor) -> Suited:
    words = {"weight_only": ("int4", "int8")}
    if processor.apple:
        return Suited(words, "Metal has kernels for affine groups of weights, and none for int8 activations")
    return Suited(words, "its kernels for packed weights are those of GPUs; a CPU computes dequantized")


def _on_torch_gpu(processor: Processor) -> Suited:
    return Suited({"float": ("fp16", "bf16")}, "torch has no kernels for these tables on a GPU, but for half precision")


def _on_cuda_blocks(processor: Processor) -> Suited:
    return Suited({"weight_only": ("int4", "int8")}, "ONNX Runtime multiplies packed weights of 4 and 8 bits on CUDA")


def _on_float_alone(processor: Processor) -> Suited:
    return Suited({"float": ("fp16",)}, "ONNX Runtime's Core ML provider takes float operators alone")


def _on_neural_engine(processor: Processor) -> Suited:
    words, palettes = {"weight_only": ("lut4", "lut6", "int8")}, "palettes of 4 and 6 bits and int8 weights per channel"
    if processor.apple and not _computes_in_int8(processor):
        return Suited(words, f"{palettes} load faster; it computes in fp16")
    since = "" if processor.apple else f" from the M{_FIRST_INT8_NEURAL_ENGINE} on"
    whole = f"symmetric W8A8 with weights per channel computes in int8{since}, while no operator between stays float"
    return Suited({"static": ("int8_sym",)} | words, f"{whole}; {palettes} load faster")


def _on_core_ml(processor: Processor) -> Suited:
    return Suited({"weight_only": ("int4", "int8", "lut4")}, "Core ML reads blocks and palettes, and computes in float")


_SUITED = {
    **dict.fromkeys(("torch", "torch_compile", "onnxruntime"), _on_processor),
    "openvino": _on_openvino,
    **dict.fromkeys(("torch_mps", "torch_cuda"), _on_torch_gpu),
    **dict.fromkeys(("mlx", "mlx_cpu"), _on_mlx),
    **dict.fromkeys(("coreml", "coreml_cpu", "coreml_gpu"), _on_core_ml),
    "coreml_ane": _on_neural_engine,
    "onnxruntime_cuda": _on_cuda_blocks,
    "onnxruntime_apple": _on_float_alone,
}


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
    gains_nothing = "W8A8 computes in fp16 and gains nothing over int8 weights"
    whole = "symmetric W8A8 computes in int8, with weights per channel and while no operator between stays float"
    w8a8 = whole if _computes_in_int8(processor) else gains_nothing
    return f"Neural Engine (Core ML): palettes of 4 and 6 bits and int8 weights per channel load faster; {w8a8}."


def _computes_in_int8(processor: Processor) -> bool:
    generation = re.search(r"\bM(\d+)", processor.name)
    return bool(generation) and int(generation[1]) >= _FIRST_INT8_NEURAL_ENGINE
