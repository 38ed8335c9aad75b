"""What quantizing costs: seconds on one thread and growth of memory, measured in a fresh process for every round."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.environment import pin_threads

if TYPE_CHECKING:
    from benchmarks.child import Job

_ROOT = Path(__file__).parents[1]
_COMMAND = [sys.executable, "-c", "from benchmarks.child import main; main()"]


class QuantizerError(RuntimeError):
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


class Child:
    """A process that has loaded a job and waits to be told to do it. Use it in a ``with``: that ends the process."""

    def __init__(self, job: "Job", progress: Callable[[str], None]) -> None:
        self._job, self._progress = job, progress
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        self._process = subprocess.Popen(_COMMAND, env=_environment(), **pipes)
        self._tell(json.dumps(asdict(job)))

    def __enter__(self) -> "Child":
        self._hear("ready")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def quantize(self) -> Cost:
        """Do the job and return when it is done.

        Raises:
            QuantizerError: it failed.
        """
        self._tell("quantize")
        return Cost(**self._hear("cost"))

    def outputs(self, inputs: Path) -> np.ndarray:
        """Return float32 [n, ...]: what the quantized model makes of the inputs in a file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "outputs.npy"
            self._tell(json.dumps({"inputs": str(inputs), "file": str(file)}))
            self._hear("done")
            return np.load(file)

    def _tell(self, line: str) -> None:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _hear(self, word: str) -> object:
        for line in self._process.stdout:
            message = json.loads(line)
            if word in message:
                return message[word]
            self._progress(message["progress"])
        raise self._failure()

    def _failure(self) -> QuantizerError:
        status = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        last = said[-1] if said else f"it ended with status {status}"
        return QuantizerError(f"{self._job.method} could not quantize {self._job.model} to {self._job.bits}: {last}")


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    pin_threads(1, environment)
    paths = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
