"""What quantizing costs: seconds on one thread and growth of memory, measured in a fresh process for every round."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.process import Process, ProcessError

if TYPE_CHECKING:
    from benchmarks.child import Job


class QuantizerError(ProcessError):
    """A quantizer that failed in its process; the message is one sentence that ends with what it said last."""


@dataclass(frozen=True)
class Cost:
    """What one quantization took.

    seconds          of processor time on one thread; unlike the clock's, they do not grow when a machine is busy
    elapsed_seconds  by the clock
    peak_bytes       by which memory grew over that of the loaded model and data
    """

    seconds: float
    elapsed_seconds: float
    peak_bytes: int


class Child(Process):
    """A process that has loaded a job and waits to be told to do it. Use it in a ``with``: that ends the process."""

    def __init__(self, job: "Job", progress: Callable[[str], None]) -> None:
        super().__init__("benchmarks.child", progress=progress)
        self._job = job
        self.tell(asdict(job))

    def __enter__(self) -> "Child":
        self.hear("ready")
        return self

    def quantize(self) -> Cost:
        """Do the job and return when it is done.

        Raises:
            QuantizerError: it failed.
        """
        self.tell("quantize")
        return Cost(**self.hear("cost"))

    def outputs(self, inputs: Path) -> np.ndarray:
        """Return float32 [n, ...]: what the quantized model makes of the inputs in a file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "outputs.npy"
            self.tell({"inputs": str(inputs), "file": str(file)})
            self.hear("done")
            return np.load(file)

    def _failure(self) -> QuantizerError:
        job = self._job
        return QuantizerError(f"{job.method} could not quantize {job.model} to {job.bits}: {super()._failure()}")
