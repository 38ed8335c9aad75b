"""How ONNX Runtime is opened, and kept quiet."""

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime

Provider = str | tuple[str, dict[str, str]]

CPU: tuple[Provider, ...] = ("CPUExecutionProvider",)

_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"


def session_options(
    optimization: str = "all", arena: bool = True, memory_pattern: bool = True, spinning: bool = True
) -> onnxruntime.SessionOptions:
    """Return options that log errors only.

    Args:
        optimization: what the graph is rewritten with: "all", "extended" or "basic".
        arena: whether memory is taken in large pieces and kept, instead of asked for each value.
        memory_pattern: whether values are laid out beforehand where their sizes are known.
        spinning: whether threads wait for work actively, where there are several.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{optimization.upper()}")
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = memory_pattern
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options


def open_session(
    model: Path | bytes,
    threads: int = 1,
    options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Provider] = CPU,
    **attributes: object,
) -> onnxruntime.InferenceSession:
    """Return a session of a model, a file or what one holds, that computes on ``threads`` threads.

    ``providers`` are tried in their order for each operator: names, or pairs of a name and its options; ``attributes``
    are some more of ``onnxruntime.SessionOptions``.

    Raises:
        ValueError: the first provider cannot be used; ONNX Runtime itself would go on with the next.
    """
    options = options or session_options()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for name, value in attributes.items():
        setattr(options, name, value)
    if len(providers) > 1:
        options.add_session_config_entry(_RECORD_PLACEMENT, "1")
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    wanted = _name(providers[0])
    if session.get_providers()[0] != wanted:
        raise ValueError(f"ONNX Runtime cannot use its {wanted} here: check what it needs to be installed.")
    return session


def placement(session: onnxruntime.InferenceSession) -> list[str]:
    """Return a sentence on which provider runs how many operators, where there are several providers."""
    if len(session.get_providers()) < 2:
        return []
    counts = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    parts = [f"{count} on {name.removesuffix('ExecutionProvider')}" for name, count in counts.most_common()]
    return [f"Operators by provider: {', '.join(parts)}."]


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


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
