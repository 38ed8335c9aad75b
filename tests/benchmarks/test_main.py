import json
import subprocess
import sys

import pytest
import torch

import quant
from benchmarks.__main__ import main
from benchmarks.workshop import Settings, Workshop, calibration_batches
from fixtures.cache import Cache

SEARCH = ["search", "digits", "--max-drop", "2pp", "--target", "torch"]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Threads are pinned in a process of the command's own; of times a few rounds are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.commands.search.pin_threads", lambda count: None)
        patch.setattr("benchmarks.prices.SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(cache, tmp_path_factory):
    """The recipe of a search whose cache was empty."""
    path = tmp_path_factory.mktemp("recipes") / "recipe.json"
    assert main([*SEARCH, "--cache-dir", str(cache), "-o", str(path)]) == 0
    return path


def test_a_search_writes_a_recipe_that_replays_bit_for_bit(cache, first):
    recipe = json.loads(first.read_text())
    assert recipe["model"] == "digits"
    assert recipe["verified"]["ci95"][1] <= 2.0
    workshop = Workshop(Cache(cache), Settings())
    calibration = calibration_batches(workshop.calibration("digits"))
    again = quant.replay(workshop.prepare("digits").graph, first, calibration)
    module = workshop.model("digits").build()
    example = tuple(torch.from_numpy(values[:2].copy()) for values in calibration[0])
    captured = quant.capture(module, example, workshop.model("digits").dynamic_axes)
    anew = quant.replay(captured, recipe, calibration)
    for name, weight in again.weights.items():
        assert torch.equal(weight.codes, anew.weights[name].codes)


def test_a_search_that_goes_on_makes_and_answers_nothing_twice(cache, first, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Workshop, "_evaluate", lambda *arguments: pytest.fail("it was answered before"))
    monkeypatch.setattr("benchmarks.workshop.quantize", lambda *arguments: pytest.fail("it was made before"))
    path = tmp_path / "again.json"
    assert main([*SEARCH, "--cache-dir", str(cache), "-o", str(path)]) == 0
    ours, theirs = (json.loads(file.read_text()) for file in (path, first))
    assert ours["tables_sha256"] == theirs["tables_sha256"]
    assert ours["verified"] == theirs["verified"]
    assert "samples were evaluated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "unknown model 'digit': did you mean digits?"),
        (["nothing.py"], "nothing.py does not exist"),
        (["digits", "--max-drop", "1"], "--max-drop 1 has no unit"),
        (["digits", "--max-drop", "0.1pp"], "allow --max-drop"),
        (["digits", "--max-size", "20"], "'20' is not a size"),
        (["digits", "--max-latency", "fast"], "'fast' is not a time"),
        (["digits", "--budget", "soon"], "--budget soon is not a time"),
        (["digits", "--budget", "1us"], "--budget 1us was over before"),
        (["digits", "--threads", "0"], "--threads: '0' must be a whole number"),
        (["digits", "--target", "onnx"], "unknown backend 'onnx'"),
        (["digits", "-o", f"{__file__}/recipe.json"], "test_main.py is not a folder"),
        (["digits", "-o", "."], ". is a folder: name the file to write"),
    ],
)
def test_bad_input_is_one_sentence_and_status_4(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", *arguments]) == 4
    shown = capsys.readouterr()
    *_, last = shown.err.splitlines()
    assert message in last
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_no_latency_can_be_asked_of_what_does_not_run_here(capsys):
    assert main(["search", "digits", "--target", "coreml", "--max-latency", "1ms"]) == 4
    assert "coreml does not run here, so no time of it can be taken" in capsys.readouterr().err


def test_nothing_that_fits_is_status_1_and_writes_nothing(cache, first, tmp_path, capsys):
    path = tmp_path / "recipe.json"
    assert main([*SEARCH, "--max-size", "1kB", "--cache-dir", str(cache), "-o", str(path)]) == 1
    assert capsys.readouterr().out.startswith("No candidate fits (")
    assert not path.exists()


def test_an_interrupted_search_says_that_it_goes_on(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.commands.search.run", interrupted)
    assert main(["search", "digits"]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_help_teaches_and_imports_nothing_heavy(pytestconfig):
    root = pytestconfig.rootpath
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks", "search", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "python -m benchmarks search minilm --max-drop 1pp" in shown.stdout
    assert "--max-latency" in shown.stdout
    program = (
        "import sys\nfrom benchmarks.__main__ import main\ntry:\n    main(['search', '--help'])\nexcept SystemExit:\n"
        "    pass\nprint(sorted({name.partition('.')[0] for name in sys.modules} & {'numpy', 'torch'}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
