"""A process of our own that is told what to do, and answers, in lines of JSON.

It runs the function ``main`` of a module of ours, which asks :func:`answers` where to write; what a library prints goes
to the standard error.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from benchmarks.environment import pin_threads

_ROOT = Path(__file__).parents[1]


class ProcessError(RuntimeError):
    """A process that failed; the message is one sentence that ends with what it said last."""


class Process:
    """A running process. Use it in a ``with``: that ends the process."""

    def __init__(self, module: str, threads: int = 1, progress: Callable[[str], None] = lambda text: None) -> None:
        self._progress = progress
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        command = [sys.executable, "-c", f"from {module} import main; main()"]
        self._process = subprocess.Popen(command, env=_environment(threads), **pipes)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def tell(self, message: object) -> None:
        """Write a line.

        Raises:
            ProcessError: the process has ended.
        """
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def hear(self, word: str) -> object:
        """Return what the process says under ``word``, passing on what it says of its progress meanwhile.

        Raises:
            ProcessError: it ended without saying so.
        """
        for line in self._process.stdout:
            message = json.loads(line)
            if word in message:
                return message[word]
            self._progress(message["progress"])
        raise self._failure()

    def _failure(self) -> ProcessError:
        status = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        return ProcessError(said[-1] if said else f"it ended with status {status}")


def answers() -> TextIO:
    """Return, in the process, what its parent hears; from now on its standard output is its standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def _environment(threads: int) -> dict[str, str]:
    environment = dict(os.environ)
    pin_threads(threads, environment)
    paths = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
