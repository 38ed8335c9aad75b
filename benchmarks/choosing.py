"""The pytest plugin of ``--backend`` and ``--tuned``: which targets run, and with what settings of their runtimes.

Targets that this machine cannot run have no cases, so that nobody is shown thousands of skips; where one is asked for,
by ``--backend`` or in a selection, a sentence says why. Those that take long to start run only where they are named.
"""

import re

import pytest

from benchmarks import environment
from benchmarks.outcomes import is_case
from quant.backends import target, targets

BEST = "best"
_WORD = re.compile(r"\w+")
_CHOSEN = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quantization benchmarks")
    group.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="run the cases of this backend alone; repeatable; best means, for each model, the backend that the saved "
        "runs of this machine recommend",
    )
    group.addoption(
        "--tuned",
        action="store_true",
        help="run with the settings that `python -m benchmarks tune` found on this machine",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in config.option.backend:
        if name != BEST:
            _check(name)
    if config.option.tuned:
        _check_tuned(config)


def _check(name: str) -> None:
    try:
        found = target(name)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    missing = found.missing()
    reason = found.elsewhere() or (f"{name} is not installed: {missing}" if missing else None)
    if reason:
        raise pytest.UsageError(f"{reason}.")


def _check_tuned(config: pytest.Config) -> None:
    from benchmarks import tuned
    from fixtures.plugin import cache_of

    try:
        known = tuned.read(cache_of(config).folder)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if not known.entries:
        raise pytest.UsageError(
            "nothing is tuned on this machine with these libraries: run python -m benchmarks tune MODEL first."
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the cases of the backends that are asked for; without any, those that need not be."""
    cases = [item for item in items if is_case(item)]
    dropped = {item for item in cases if not _is_wanted(config, item.callspec.params["case"])}
    if BEST in config.option.backend:
        dropped -= _best(config, cases)
    if dropped:
        config.hook.pytest_deselected(items=[item for item in cases if item in dropped])
        items[:] = [item for item in items if item not in dropped]


def _is_wanted(config: pytest.Config, case: object) -> bool:
    if config.option.backend:
        return case.backend in config.option.backend
    return not target(case.backend).opt_in or case.backend in _words(config)


def _words(config: pytest.Config) -> set[str]:
    """Return the words of the selection that the command line holds."""
    texts = (config.option.keyword, config.option.markexpr, *config.args)
    return {word for text in texts for word in _WORD.findall(text or "")}


def _best(config: pytest.Config, cases: list[pytest.Item]) -> set[pytest.Item]:
    """Return the cases of the backend that is best for their model.

    Raises:
        pytest.UsageError: no saved run of this machine tells which that is.
    """
    from benchmarks.saving import storage_folder
    from reports.requirements import parse_requirements
    from reports.runs import RunError
    from reports.selection import best_of_each_model, runs_of_machine

    try:
        runs = runs_of_machine(storage_folder(config), environment.describe(config.option.threads))
    except RunError as error:
        raise pytest.UsageError(str(error)) from None
    found = best_of_each_model(runs, parse_requirements())
    axes = {item: item.callspec.params["case"] for item in cases}
    unknown = sorted({case.model for case in axes.values()} - set(found))
    if unknown:
        raise pytest.UsageError(
            f"no complete save of this machine tells the best backend of {', '.join(unknown)}: measure all backends "
            "once with --benchmark-save=NAME, with more --eval-samples where no case was shown to keep accuracy, or "
            "narrow with -k."
        )
    config.stash[_CHOSEN] = {model: candidate.name for model, candidate in found.items()}
    backends = {model: candidate.record["case"]["backend"] for model, candidate in found.items()}
    return {item for item, case in axes.items() if case.backend == backends[case.model]}


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Say which backend was chosen and by what, and why a target in the selection has no cases."""
    models = {item.callspec.params["case"].model for item in items if is_case(item)}
    chosen = {model: name for model, name in config.stash.get(_CHOSEN, {}).items() if model in models}
    lines = [f"The saved runs of this machine recommend {name} of {model}." for model, name in chosen.items()]
    named = _words(config)
    absent = [found.elsewhere() for name, found in targets().items() if name in named and found.elsewhere()]
    return [*lines, *(f"{reason}, so it has no cases." for reason in absent)]
