"""An artefact in a fresh process: loaded by its own runtime, run on the samples, its codes read back."""

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import quant
from quant.exporting import Format
from quant.exporting.child import OUTPUTS
from quant.exporting.expected import Expected

SECONDS = 600.0
"""Of processor time, after which no further sample is run: kernels for another device may be slow on this one."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Found:
    """What the process reported.

    outputs      float32 [n, ...] on the first samples; None where it failed
    codes        sha256 of each weight's codes as read back; weights whose codes are not read back are left out
    checked_by   name and version of what ran it
    evidence     "measured" by the format's own runtime, or "evaluated"
    peak_bytes   the most it held, the interpreter included
    failure      the last thing it said, where it failed
    readers      the outputs of whatever else reads the format, by name, or one line on why there are none
    """

    outputs: np.ndarray | None
    codes: dict[str, str]
    checked_by: str | None
    evidence: str
    peak_bytes: int | None
    failure: str | None = None
    readers: dict[str, np.ndarray | str] = field(default_factory=dict)


def check(expected: Expected, format: Format, artifact: Path) -> Found:
    """Return what a fresh process finds of an artefact."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "samples.npz", *expected.samples)
        request = {
            "format": format.name,
            "artifact": str(artifact.absolute()),
            "seconds": SECONDS,
            "layouts": {name: asdict(layout) for name, layout in expected.layouts.items()},
        }
        (folder / "request.json").write_text(json.dumps(request))
        command = [str(format.python), "-m", "quant.exporting.child", str(folder)]
        done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            failure = said[-1] if said else f"it ended with status {done.returncode}"
            return Found(None, {}, None, format.evidence, None, failure)
        answer = json.loads((folder / "answer.json").read_text())
        outputs = _outputs(folder / OUTPUTS, answer.pop("shape"))
        answer["readers"] = {
            name: shape if isinstance(shape, str) else _outputs(folder / f"{OUTPUTS}_{name}", shape)
            for name, shape in answer["readers"].items()
        }
    return Found(outputs, evidence=format.evidence, **answer)


def _outputs(path: Path, shape: list[int]) -> np.ndarray:
    return np.fromfile(path, np.float32).reshape(shape)


def environment() -> dict[str, str]:
    """Return the variables of a process that has this package, and one thread."""
    root = str(Path(quant.__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": paths}
