"""The fresh process that checks an artefact: ``python -m quant.exporting.child FOLDER``.

It imports numpy and the format's runtime and nothing else until the samples are run, so that the most it held by then
is what a deployed process holds. Into the folder that has the request it writes ``outputs``, the first output on each
sample, as they come, and at last ``answer.json``. What else reads the format runs the samples afterwards, each into a
file of its own.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from quant.exporting import Function, Layout, format_named
from quant.memory import peak

OUTPUTS = "outputs"


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    request = json.loads((folder / "request.json").read_text())
    writer, artifact = format_named(request["format"]).load(), Path(request["artifact"])
    shape = _run(writer.load(artifact), folder, request["seconds"], OUTPUTS)
    answer = {"shape": shape, "checked_by": writer.version(), "peak_bytes": peak()}
    layouts = {name: Layout(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in request["layouts"].items()}
    read = writer.codes(artifact, layouts)
    answer["codes"] = {name: digest_of_codes(codes) for name, codes in read.items()}
    readers = writer.readers(artifact) if hasattr(writer, "readers") else {}
    answer["readers"] = {name: _read(reader, folder, request["seconds"], name) for name, reader in readers.items()}
    (folder / "answer.json").write_text(json.dumps(answer))


def digest_of_codes(codes: np.ndarray) -> str:
    """Return the sha256 of codes (uint8 or int8) and their shape, whichever of the two types they have."""
    digest = hashlib.sha256(str(codes.shape).encode())
    digest.update(np.ascontiguousarray(codes).view(np.uint8).data)
    return digest.hexdigest()


def _read(load: Callable[[], Function], folder: Path, seconds: float, name: str) -> list[int] | str:
    """Return the shape of what another reader computed, or one line on why it does not."""
    try:
        return _run(load(), folder, seconds, f"{OUTPUTS}_{name}")
    except ModuleNotFoundError as error:
        return f"not installed: {error}"
    except Exception as error:  # whatever a runtime may raise about a file it cannot take
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run(function: Function, folder: Path, seconds: float, file_name: str) -> list[int]:
    """Write the first outputs on the samples, one at a time, and return the shape of all of them."""
    start, count, shape = time.process_time(), 0, ()
    with np.load(folder / "samples.npz") as saved:
        samples = [saved[name] for name in saved.files]
    with (folder / file_name).open("wb") as file:
        for index in range(len(samples[0])):
            output = np.asarray(function(*(values[index : index + 1] for values in samples))[0], np.float32)
            if output.shape[0] != 1 or (shape and output.shape[1:] != shape):
                raise ValueError(f"one sample gives an output of shape {output.shape}.")
            output.tofile(file)
            count, shape = count + 1, output.shape[1:]
            if time.process_time() - start > seconds:  # a busy machine leaves no sample out
                break
    return [count, *shape]


if __name__ == "__main__":
    main(sys.argv[1:])
