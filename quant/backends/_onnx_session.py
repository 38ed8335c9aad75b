"""How ONNX Runtime is opened, and kept quiet."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnxruntime


def open_session(model: Path | bytes, threads: int = 1, **settings: object) -> onnxruntime.InferenceSession:
    """Return a session on the CPU that computes on ``threads`` threads and logs errors only.

    ``model`` is a file, or what one holds; ``settings`` are attributes of ``onnxruntime.SessionOptions``.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporter and the runtime's quantizers print, log and warn about."""
    level, root = logging.root.manager.disable, (logging.root.level, logging.root.handlers[:])
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        # Importing the runtime's quantizers configures logging for the whole process.
        logging.root.setLevel(root[0])
        logging.root.handlers[:] = root[1]
