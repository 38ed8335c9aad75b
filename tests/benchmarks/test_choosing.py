"""Which backends run, as a user of `pytest benchmarks` says it; the cases are collected in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.matrix import matrix
from quant.backends import target

ROOT = Path(__file__).parents[2]
CASE = "test_inference.py::test_inference["


@pytest.fixture
def collected(tmp_path):
    """Collects with the arguments, beside an empty cache and an empty storage of saves."""
    folders = [f"--cache-dir={tmp_path}", f"--benchmark-storage={tmp_path}", "-p", "no:cacheprovider"]

    def collect(*arguments):
        command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", *folders, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    return collect


def cases(done):
    """The ids of the cases that would run."""
    names = (line.partition(CASE)[2] for line in done.stdout.splitlines())
    return {name.rstrip("]") for name in names if name}


def test_a_backend_that_is_named_runs_alone(collected):
    found = cases(collected("-q", "--backend", "mlx", "-k", "digits and int3"))
    wanted = {case.id for case in matrix()[0] if (case.model, case.bits, case.backend) == ("digits", "int3", "mlx")}
    assert found == wanted != set()


@pytest.mark.skipif(target("torch_compile").elsewhere() is not None, reason="no compiler is here")
@pytest.mark.parametrize(
    "arguments",
    [["-k", "digits-rtn-int3-torch_compile"], ["--backend", "torch_compile", "-k", "digits-rtn-int3"]],
    ids=["by a selection", "by the option"],
)
def test_a_backend_that_is_slow_to_start_runs_where_it_is_named(collected, arguments):
    assert cases(collected("-q", *arguments)) == {"digits-rtn-int3-torch_compile"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--backend=torhc"], "unknown backend 'torhc': did you mean torch", id="a typing error"),
        pytest.param(
            ["--backend=coreml_ane"],
            "coreml_ane exists only on macOS.",
            id="elsewhere",
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="it exists here"),
        ),
        pytest.param(["--tuned"], "nothing is tuned on this machine", id="not tuned"),
        pytest.param(["--backend=best", "-k", "digits"], "tells the best backend of digits", id="nothing saved"),
    ],
)
def test_what_cannot_be_chosen_is_a_usage_error_in_one_sentence(collected, arguments, sentence):
    done = collected("-q", *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="it exists here")
def test_a_selection_of_an_absent_backend_says_why_it_is_empty(collected):
    assert "torch_mps exists only on macOS, so it has no cases." in collected("-k", "torch_mps").stdout.splitlines()
