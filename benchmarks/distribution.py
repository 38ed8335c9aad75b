"""Spreading the cases of a run: over xdist's workers, and over shards that run independently and are merged."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.durations import known_seconds
from benchmarks.outcomes import is_case

_TESTS = Path(__file__).parents[1] / "tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("quantization benchmarks").addoption(
        "--shard",
        type=shard,
        metavar="I/N",
        help="run the I-th of N parts of the selection; python -m reports merge puts their files together",
    )


def shard(text: str) -> tuple[int, int]:
    """Return number and count of ``2/8``."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N, such as 2/8, with I from 1 to N")
    return number, count


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is not in this shard, after everything else has selected."""
    if not config.option.shard:
        return
    number, count = config.option.shard
    cases = [item for item in items if is_case(item)]
    shares = deal([item.callspec.params["case"] for item in cases], count)
    others = {item for item, share in zip(cases, shares, strict=True) if share != number - 1}
    if others:
        config.hook.pytest_deselected(items=[item for item in cases if item in others])
        items[:] = [item for item in items if item not in others]


def deal(cases: Sequence, count: int) -> list[int]:
    """Return the share, from 0 on, that each case falls to: the same on every machine.

    Cases of the same tables stay together. Each such group goes to the share that has fewest cases of its model, so
    that the expensive models are spread evenly; then to that with fewest cases at all.
    """
    groups: dict[tuple, list[int]] = {}
    for position, case in enumerate(cases):
        groups.setdefault((case.model, case.method, case.bits), []).append(position)
    shares, totals, by_model = [0] * len(cases), [0] * count, {}
    for (model, *_), positions in groups.items():
        own = by_model.setdefault(model, [0] * count)
        share = min(range(count), key=lambda share: (own[share], totals[share], share))
        for position in positions:
            shares[position] = share
        own[share] += len(positions)
        totals[share] += len(positions)
    return shares


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep a model's cases together, unless another distribution is asked for or no case can be among the tests."""
    named = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    if config.getvalue("dist") != "load" or all(path.is_relative_to(_TESTS) for path in named):
        return None
    from benchmarks.scheduling import CaseScheduling

    return CaseScheduling(config, log, known_seconds(config))
