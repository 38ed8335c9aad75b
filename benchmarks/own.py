"""The pytest plugin of ``--model``: models of the user's own in the matrix, and a run of the named models alone."""

from pathlib import Path

import pytest

from benchmarks import matrix
from benchmarks.outcomes import is_case

_NAMES = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("quantization data").addoption(
        "--model",
        action="append",
        default=[],
        metavar="FILE",
        help="benchmark a model of your own, from a file that `python -m fixtures new FILE` starts, or one of the zoo "
        "by its name; repeatable, and no other model runs",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_NAMES] = {_added(text) for text in config.option.model}


def _added(text: str) -> str:
    try:
        return model_named(text)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def model_named(text: str) -> str:
    """Return the name of a model of the zoo, of an installed one or of a file, added to the matrix if it is not there.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    if text in matrix.models():
        return text
    # These import numpy and torch, before which threads must be pinned.
    from fixtures.own_files import installed, read

    file = installed(text) or Path(text)
    if not file.suffix and not file.exists():
        return matrix.model(text).name  # refused, with the names that are like it
    entry = read(file.resolve())
    matrix.add_model(entry)
    return entry.name


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Say what each model of the user's own is made of, and what the backends can do with it, before anything runs."""
    config = session.config
    reporter = config.pluginmanager.getplugin("terminalreporter")
    own = [name for name in sorted(config.stash[_NAMES]) if hasattr(matrix.model(name), "own")]
    if not own or reporter is None or hasattr(config, "workerinput") or config.option.collectonly:
        return
    if config.option.verbose < 0:
        return
    from benchmarks.describing import description
    from benchmarks.workshop import Settings, Workshop
    from fixtures.plugin import cache_of

    chosen = {item.callspec.params["case"].backend for item in session.items if is_case(item)}
    workshop = Workshop(cache_of(config), Settings(config.option.threads))
    for name in own:
        reporter.write_line("")
        reporter.write_line(description(workshop, name, sorted(chosen) or None, whole=config.option.verbose > 0))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the cases of the models that are named; without any, those of all models that need not be."""
    names = config.stash[_NAMES]
    opt_in = {name for name, entry in matrix.models().items() if entry.constants.get("OPT_IN")}

    def is_wanted(model: str) -> bool:
        return model in names if names else model not in opt_in

    dropped = {item for item in items if is_case(item) and not is_wanted(item.callspec.params["case"].model)}
    if dropped:
        config.hook.pytest_deselected(items=[item for item in items if item in dropped])
        items[:] = [item for item in items if item not in dropped]
