"""Print, as a page in Markdown, what the reference evaluator of saved Core ML models computes, and which operators."""

import argparse

HELP = "print what the reference evaluator of Core ML models computes"

_PAGE = """\
# What a saved Core ML model computes, on any operating system

Core ML runs on Apple's systems only. Everywhere else a reference evaluator, `quant.backends.coreml_evaluator`, reads
the saved `.mlpackage` and computes it in torch; accuracy in records with `"evidence": "evaluated"` comes from it.

```python
from quant.backends.coreml_evaluator import Evaluator

run = Evaluator("model.mlpackage", half=True)
outputs = run({"x": array})
```

- **What it tells.** What the program means, from its bytes on disk: a wrong scale, a swapped axis or a lost zero point
  shows. Not how fast it is, nor the order in which a device adds, so that float results differ in their last bits.
- **Half precision.** By default all is computed in float32. With `half=True` every value that the program declares as
  fp16 is rounded to it: an operator computes in float32, its result is rounded once, to nearest, ties to even, and to
  infinity beyond 65504. Devices that add in half precision, as the Neural Engine does, lose more than that.
- **Compressed weights.** Palettes (`constexpr_lut_to_dense`, scalar and vector entries, one table or one for each group
  of rows or columns, the packed indices of iOS 16), scales of blocks along any axes with or without offsets
  (`constexpr_blockwise_shift_scale`), scales of an axis (`constexpr_affine_dequantize`), sparse weights, and one inside
  another are decompressed once, when the program is read.
- **Quantized activations.** `quantize` rounds ties to even and saturates at the ends of int8 or uint8; W8A8 programs
  are computed in float between `dequantize` and the next `quantize`.
- **States.** A program that keeps a cache takes `state=run.make_state()`, zeros at first; each call goes on from there.
- **One function.** A program of several functions, a pipeline, and image inputs are refused or not read.

An operator that is not listed is refused by name before anything runs.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> int:
    print(page(), end="")
    return 0


def page() -> str:
    """Return the page, the table of operators read from the code among it."""
    from quant.backends.coreml_evaluator import operator_table

    return f"{_PAGE}{operator_table()}\n"
