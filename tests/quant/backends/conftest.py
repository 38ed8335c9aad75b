"""What tests of several backends share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quant.backends import Target, target
from quant.graph import FloatGraph


@pytest.fixture(scope="session")
def with_template(tmp_path_factory) -> Callable[[str, FloatGraph], tuple[Target, Path]]:
    """Returns a target and the folder of its template of a graph; skips the test where its runtime is missing."""

    def made(name, graph):
        where = target(name)
        lacking = where.missing()
        if lacking:
            pytest.skip(lacking)
        folder = tmp_path_factory.mktemp(name)
        where.load().template(graph, folder, "float32")
        return where, folder

    return made
