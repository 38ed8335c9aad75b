"""Which of xdist's workers runs which case: a model's cases on one worker, until another has nothing better to do.

Cases are handed out in units that share tables (model, method and bits), which are made once and behind a lock: two
workers at one unit would wait for each other. Loading a model, and running float on each backend, costs every worker
that works at it, so only a large model is split, and a helper works from the far end backwards.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from benchmarks.durations import DEFAULT_SECONDS

WORTH_SPLITTING = 20.0
"""Seconds of work left in a model for which another worker loads it too."""
_FEWEST = 2  # a worker begins a test only when it knows the next one
_CASE = re.compile(r"\[((?P<model>[^-\]]+)-[^-\]]+-[^-\]]+)-[^-\]]+\]$")


@dataclass(frozen=True)
class Unit:
    """Positions in the collection of tests that stay together, and the seconds they are expected to take."""

    positions: list[int]
    seconds: float


class CaseScheduling(LoadScopeScheduling):
    """Hands out units; ``assigned_work`` holds, for each worker, the positions it was sent and has not finished."""

    def __init__(self, config: pytest.Config, log: Producer, seconds: Mapping[str, float]) -> None:
        super().__init__(config, log)
        self._seconds = seconds
        self._units: dict[str, list[Unit]] = {}
        self._works_at: dict[WorkerController, str] = {}
        self._helpers: set[WorkerController] = set()

    @property
    def tests_finished(self) -> bool:
        done = self.collection_is_completed and not any(self._units.values())
        return done and all(len(sent) < 2 for sent in self.assigned_work.values())

    @property
    def has_pending(self) -> bool:
        return any(self._units.values()) or any(self.assigned_work.values())

    def schedule(self) -> None:
        """Hand out the first units, or go on after a worker was replaced."""
        if self.collection is None:
            if not self._check_nodes_have_same_collection():
                return
            self.collection = list(next(iter(self.registered_collections.values())))
            self._units = units_by_model(self.collection, self._seconds)
        for node in self.nodes:
            self._supply(node)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        self.assigned_work[node].pop(item_index)
        self._supply(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a worker; the test at which it crashed is returned, and what it did not begin is handed out again."""
        sent = list(self.assigned_work.pop(node))
        model = self._works_at.pop(node, None)
        if not sent:
            return None
        begun, *rest = sent
        if rest:
            self._units[model].insert(0, Unit(rest, DEFAULT_SECONDS * len(rest)))
        for other in self.nodes:
            self._supply(other)
        return self.collection[begun]

    def _supply(self, node: WorkerController) -> None:
        """Keep a worker busy, or let it go when nothing is left for it."""
        while not node.shutting_down and len(self.assigned_work[node]) < _FEWEST:
            positions = self._take(node)
            if not positions:
                node.shutdown()
                return
            self.assigned_work[node] |= dict.fromkeys(positions)
            node.send_runtest_some(positions)

    def _take(self, node: WorkerController) -> list[int]:
        """Return the next unit for a worker: of its own model, of one nobody works at, or of one worth splitting."""
        own = self._works_at.get(node)
        if not self._units.get(own):
            own = self._choose(node)
            if own is None:
                return []
            self._works_at[node] = own
        if node in self._helpers:
            return self._units[own].pop().positions[::-1]
        return self._units[own].pop(0).positions

    def _choose(self, node: WorkerController) -> str | None:
        taken = {model for other, model in self._works_at.items() if other != node and not other.shutting_down}
        left = {model: sum(unit.seconds for unit in units) for model, units in self._units.items() if units}
        free = {model: seconds for model, seconds in left.items() if model not in taken}
        large = {model: seconds for model, seconds in left.items() if seconds >= WORTH_SPLITTING}
        if free:
            self._helpers.discard(node)
        else:
            self._helpers.add(node)
        choices = free or large
        return max(choices, key=choices.get, default=None)


def units_by_model(collection: Iterable[str], seconds: Mapping[str, float]) -> dict[str, list[Unit]]:
    """Return the units of each model, in the order of the collection; tests that are no cases stay with their file.

    ``seconds`` tells what cases took before, by id.
    """
    positions: dict[tuple[str, str], list[int]] = {}
    expected: dict[tuple[str, str], float] = {}
    for position, node in enumerate(collection):
        case, file = _CASE.search(node), node.partition("::")[0]
        key = (case["model"], f"{file} {case[1]}") if case else (file, file)
        positions.setdefault(key, []).append(position)
        known = seconds.get(case[0].strip("[]"), DEFAULT_SECONDS) if case else 0.0
        expected[key] = expected.get(key, 0.0) + known
    units: dict[str, list[Unit]] = {}
    for key, members in positions.items():
        units.setdefault(key[0], []).append(Unit(members, expected[key]))
    return units
