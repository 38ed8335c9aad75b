"""Write a saved quantized model in a format that its runtime loads without any code of ours, and check it.

The folder SAVED is what quant.save(quantized, SAVED, with_graph=True) writes. Each format becomes a folder of its own
in DIR: the artefact, and validation.json, what a fresh process found of it. An artefact that does not compute what its
tables mean is left there as *.rejected.

  python -m quant export saved --format onnx -o build
  python -m quant export saved --format gguf --format mlx_lm --inputs held_out.npz --memory-limit 256MB -o build

Exit status: 0 where all were written and passed, 1 where one was rejected, 4 for input that cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quant.exporting import RejectedExport, format_named, formats

if TYPE_CHECKING:
    from quant.exporting.expected import Expected

HELP = "write a saved quantized model in the format of a runtime, and check it there"
BAD_INPUT, REJECTED = 4, 1

_MEGABYTE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "saved", metavar="SAVED", type=Path, help="the folder of a quantized model with its float graph"
    )
    parser.add_argument(
        "--format", action="append", required=True, metavar="NAME", help=f"repeatable; one of {', '.join(formats())}"
    )
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR", help="where a folder per format goes"
    )
    parser.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE",
        help="samples to check on: an .npz of one array per input, in their order",
    )
    parser.add_argument("--memory-limit", metavar="SIZE", help="the most its process may hold, such as 256MB (any)")


def run(options: argparse.Namespace) -> int:
    try:
        limit = None if options.memory_limit is None else megabytes(options.memory_limit)
        chosen = [format_named(name) for name in options.format]
        expected = _expected(options)
        return max(_exported(expected, format, options.output / format.name, limit) for format in chosen)
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or options.output} cannot be used: {error.strerror or error}.", file=sys.stderr)
    return BAD_INPUT


def line(name: str, validation: dict) -> str:
    """Return a line on an export: its size, its verdict and what it rests on."""
    parity, codes = validation.get("parity"), validation.get("codes")
    parts = [f"{name}: {validation['verdict']}", f"{validation['bytes'] / _MEGABYTE:.1f} MB"]
    if parity:
        equal = "equal to the simulation" if parity["sqnr_db"] is None else f"SQNR {parity['sqnr_db']:.0f} dB"
        agreement = "" if parity["agreement"] is None else f", agreement {100 * parity['agreement']:.1f} %"
        parts.append(f"{equal}{agreement} on {parity['samples']} samples")
    if codes and codes["weights"]:
        parts.append(f"codes of {codes['identical']} of {codes['weights']} weights read back identical")
    if validation.get("memory", {}).get("peak_bytes"):
        parts.append(f"peak memory {validation['memory']['peak_bytes'] / _MEGABYTE:.0f} MB")
    return ", ".join(parts)


def megabytes(text: str) -> int:
    """Return the bytes of ``256MB``.

    Raises:
        ValueError: it is no such size.
    """
    number = text.strip().upper().removesuffix("MB").strip()
    if not number.isdecimal() or not int(number):
        raise ValueError(f"{text!r} is not a size such as 256MB.")
    return int(number) * _MEGABYTE


def _exported(expected: "Expected", format: object, folder: Path, limit: int | None) -> int:
    import json

    from quant.exporting.shipping import VALIDATION, ship

    try:
        artifact = ship(expected, format, folder, limit)
    except RejectedExport as error:
        print(error)
        return REJECTED
    print(line(str(artifact), json.loads((folder / VALIDATION).read_text())))
    return 0


def _expected(options: argparse.Namespace) -> "Expected":
    from quant.exporting.expected import Expected
    from quant.storage import load

    return Expected(load(options.saved), None if options.inputs is None else _samples(options.inputs))


def _samples(path: Path) -> "Sequence":
    import numpy as np

    from quant.reading import readable

    with readable(f"{path} is no .npz file of arrays", "write it with numpy.savez"), np.load(path) as saved:
        return [saved[name] for name in saved.files]
