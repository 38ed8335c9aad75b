import json

import pytest

import quant
from benchmarks.__main__ import main
from benchmarks.mixing import Mixer
from benchmarks.workshop import Settings, Workshop, calibration_batches
from fixtures.cache import Cache
from quant import sensitivity
from quant.backends import target
from quant.scheme import bits_per_weight

MIXED = ["mixed", "digits", "--backend", "torch"]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Threads are pinned in a process of the command's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.commands.mixed.pin_threads", lambda count: None)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache, tmp_path, capsys):
    """Run the command; returns its status, what it printed, what it told beside, and the recipe if one was written."""

    def command(*arguments, output="recipe.json"):
        path = tmp_path / output
        status = main([*MIXED, *arguments, "--cache-dir", str(cache), "-o", str(path)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err, json.loads(path.read_text()) if path.exists() else None

    return command


@pytest.fixture(scope="module")
def mixer(cache):
    return Mixer(Workshop(Cache(cache), Settings()), "digits", target("torch"))


def test_a_budget_of_bits_makes_a_recipe_that_replays_bit_for_bit(run, cache):
    status, out, err, recipe = run("--bits-per-weight", "4.5")
    assert status == 0
    assert "wrote" in err
    assert recipe["foreseen"]["bits_per_weight"] <= bits_per_weight(recipe["bits"]) <= 4.5
    workshop = Workshop(Cache(cache), Settings())
    graph, calibration = workshop.prepare("digits").graph, calibration_batches(workshop.calibration("digits"))
    again = quant.replay(graph, recipe, calibration)
    assert again.bits_per_weight == pytest.approx(recipe["foreseen"]["bits_per_weight"])
    words = {layer["name"]: layer["format"] for layer in recipe["layers"]}
    assert words == recipe["settings"]["formats"] == again.recipe["formats"]
    assert {f"int{weight.format.bits}" for weight in again.weights.values()} <= {
        word.split("_")[0] for word in words.values()
    }
    for name, word in words.items():
        assert any(line.split()[0] == name and word in line for line in out.splitlines() if line.strip())


def test_bytes_are_foreseen_and_kept(run, mixer):
    choice = mixer.within_bits(4.5)
    size = mixer.make(choice).executable.size_bytes
    # Beside its numbers a weight has names and shapes, which matter in a model of 40 kB alone.
    assert choice.size == pytest.approx(size, abs=500 * len(mixer.offer.weights))
    status, _, _, recipe = run("--max-size", f"{size / 1e3 + 2:.3f}kB")
    assert status == 0
    assert recipe["size_bytes"] <= size + 2000


def test_sensitivities_are_kept_in_the_cache_and_in_a_file(run, mixer, tmp_path, monkeypatch):
    path = tmp_path / "sensitivity.json"
    run("--sensitivity", str(path))
    assert sensitivity.load(path, mixer.offer.graph).criterion == "sqnr"
    monkeypatch.setattr("benchmarks.mixing.measured", lambda *arguments: pytest.fail("they were measured before"))
    status, _, err, _ = run("--bits-per-weight", "5")
    assert status == 0
    assert "as an earlier run measured them" in err
    status, _, err, _ = run("--bits-per-weight", "5", "--sensitivity", str(path))
    assert status == 0
    assert f"sensitivities: those of {path}" in err


def test_the_loop_finds_the_smallest_that_holds_within_its_evaluations(run):
    status, out, err, recipe = run("--max-drop", "3pp", "--evaluations", "5")
    assert status == 0
    assert recipe["verified"]["ci95"][1] <= 3
    told = [line for line in err.splitlines() if line.startswith("evaluation ")]
    assert 2 <= len(told) <= 5
    assert told[0].startswith("evaluation 1 of at most 5: ")
    assert "fresh samples" in told[-1]
    assert f"{len(told)} of at most 5 evaluations; at most 3 points of accuracy may be lost." in out


def test_where_nothing_holds_one_sentence_says_so(run):
    status, out, _, recipe = run("--max-drop", "1.1pp", "--formats", "int2_g32", "--evaluations", "3")
    assert status == 1
    assert out.startswith("No choice of formats was shown to lose at most 1.1 points of accuracy in 1 evaluations")
    assert recipe is None


def test_several_budgets_are_measured_once_and_make_a_recipe_each(run, tmp_path):
    status, out, err, _ = run("--bits-per-weight", "3.5", "6", output="front.json")
    assert status == 0
    small, large = (json.loads((tmp_path / f"front_{name}.json").read_text()) for name in ("3p5", "6"))
    assert small["size_bytes"] < large["size_bytes"]
    assert small["foreseen"]["error"] > large["foreseen"]["error"]
    assert err.count("sensitivities of") == 1
    assert len([line for line in out.splitlines() if "fresh samples" in line]) == 2


def test_only_what_the_backend_stores_is_on_offer(cache):
    mixer = Mixer(Workshop(Cache(cache), Settings()), "digits", target("coreml"))
    assert {word.partition("_")[0] for word in mixer.offer.words} == {"fp16", "int8", "int4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits-per-weight", "four"], "--bits-per-weight: could not convert"),
        (["--bits-per-weight", "0"], "between 0 and 32"),
        (["--bits-per-weight", "1"], "raise it or allow more formats"),
        (["--max-size", "20"], "'20' is not a size"),
        (["--max-size", "1kB"], "without its weights the model takes"),
        (["--max-drop", "1"], "--max-drop 1 has no unit"),
        (["--max-drop", "1pp", "--evaluations", "2"], "--evaluations 2 is not a whole number from 3"),
        (["--formats", "int4,fp32"], "'fp32' is no format of integers"),
        (["--formats", "int9"], "unknown bits word 'int9'"),
        (["--criterion", "snr"], "unknown criterion 'snr': did you mean sqnr?"),
        (["--backend", "onnx"], "unknown backend 'onnx'"),
        (["--threads", "0"], "--threads: '0' must be a whole number"),
        (["-o", f"{__file__}/recipe.json"], "test_mixing.py is not a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_4(cache, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*MIXED, "--cache-dir", str(cache), *arguments]) == 4
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_file_of_other_sensitivities_is_refused(run, tmp_path):
    path = tmp_path / "sensitivity.json"
    run("--sensitivity", str(path))
    status, _, err, _ = run("--sensitivity", str(path), "--criterion", "kl")
    assert status == 4
    assert "was measured by sqnr: write --criterion sqnr" in err
    path.write_text("{")
    status, _, err, _ = run("--sensitivity", str(path))
    assert status == 4
    assert "holds no readable sensitivities" in err
