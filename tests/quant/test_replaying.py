import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant import replaying
from quant.methods import method
from quant.replaying import RecipeWarning, read_recipe, recipe_of, replay, tables_sha256
from quant.tracing import capture


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    return capture(module, (torch.randn(2, 64),), ({0: "batch"},))


@pytest.fixture(scope="module")
def calibration():
    random = np.random.default_rng(0)
    return [(random.normal(size=(16, 64)).astype(np.float32),) for _ in range(3)]


@pytest.fixture
def written(graph, calibration, tmp_path):
    """The file of a recipe of gptq, after ``changes``."""

    def write(**changes):
        recipe = recipe_of(quant.quantize(graph, "gptq", "int4", calibration), calibration)
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**recipe, **changes}))
        return path

    return write


@pytest.mark.parametrize(
    ("method", "bits", "calibrates"),
    [
        ("mse", "int4", False),
        ("gptq", "int3", True),
        ("smoothquant", "int8", True),
        ("static_percentile", "int8", True),
    ],
)
def test_a_recipe_makes_the_same_tables_bit_for_bit(graph, calibration, tmp_path, method, bits, calibrates):
    batches = calibration if calibrates else ()
    quantized = quant.quantize(graph, method, bits, batches)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_of(quantized, batches)))
    again = quant.replay(graph, tmp_path / "recipe.json", batches)
    assert again.weights.keys() == quantized.weights.keys()
    for name, weight in quantized.weights.items():
        assert torch.equal(again.weights[name].codes, weight.codes)
        assert torch.equal(again.weights[name].scale, weight.scale)
    assert again.activations.keys() == quantized.activations.keys()
    example = graph.examples["forward"]
    assert torch.equal(quant.simulate(again)(*example)[0], quant.simulate(quantized)(*example)[0])


def test_tables_have_the_same_digest_after_they_were_saved(graph, calibration, tmp_path):
    quantized = quant.quantize(graph, "gptq", "int4", calibration)
    quant.save(quantized, tmp_path)
    assert tables_sha256(quant.load(tmp_path, graph)) == tables_sha256(quantized)


def test_one_code_more_makes_another_digest(graph):
    quantized = quant.quantize(graph, "mse", "int4")
    name, weight = next(iter(quantized.weights.items()))
    codes = weight.codes.clone()
    codes[0, 0] ^= 1
    changed = replace(quantized, weights={**quantized.weights, name: replace(weight, codes=codes)})
    assert tables_sha256(changed) != tables_sha256(quantized)


def test_other_weights_are_refused(graph, calibration, written):
    other = capture(nn.Sequential(nn.Linear(64, 48)).eval(), (torch.randn(2, 64),), ({0: "batch"},))
    with pytest.raises(ValueError, match=r"recipe\.json is of other weights than this model's: search again"):
        replay(other, written(), calibration)


def test_other_calibration_data_or_none_is_refused(graph, calibration, written):
    path = written()
    with pytest.raises(ValueError, match="needs the calibration data it was made with"):
        replay(graph, path)
    for other in (calibration[:2], [tuple(values + 1e-6 for values in batch) for batch in calibration]):
        with pytest.raises(ValueError, match="other calibration data, or other batches"):
            replay(graph, path, other)
    divided = [tuple(values[start : start + 8] for values in batch) for batch in calibration for start in (0, 8)]
    with pytest.raises(ValueError, match="other calibration data, or other batches"):
        replay(graph, path, divided)


def test_another_version_is_told_and_whether_the_tables_differ(graph, calibration, written):
    here = replaying.environment()
    assert "ONEDNN" not in here["isa"]
    path = written(environment={**here, "torch": "1.0", "isa": "NEON"})
    with pytest.warns(RecipeWarning, match=r"torch 1\.0, here .*; isa NEON, here .*; the tables are the same\."):
        replay(graph, path, calibration)
    path = written(environment={**here, "torch": "1.0"}, tables_sha256="0")
    with pytest.warns(RecipeWarning, match="some codes differ"):
        replay(graph, path, calibration)


def test_other_tables_on_the_same_machine_are_refused(graph, calibration, written):
    with pytest.raises(ValueError, match="gives other tables than it did: gptq itself has changed"):
        replay(graph, written(tables_sha256="0"), calibration)


def test_settings_that_changed_are_refused(graph, calibration, written):
    with pytest.raises(ValueError, match="the setting 'shots', which gptq does not have in this version"):
        replay(graph, written(settings={"shots": 7}), calibration)


def test_settings_of_a_recipe_s_own_are_replayed(graph, calibration):
    quantized = quant.quantize(graph, replace(method("gptq"), settings={"samples": 16}), "int4", calibration)
    recipe = recipe_of(quantized, calibration)
    assert recipe["settings"] == {"samples": 16}
    assert tables_sha256(replay(graph, recipe, calibration)) == tables_sha256(quantized)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "it has no format"),
        ('{"format": 1}', "it has no method"),
        (None, "No such file"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "recipe.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_a_recipe_of_a_later_format_is_refused(written):
    with pytest.raises(ValueError, match="has the format 2, which this version of the library cannot read"):
        read_recipe(written(format=2))


def test_the_digest_is_that_of_the_tables_not_of_their_order(graph):
    quantized = quant.quantize(graph, "dynamic", "int8")
    turned = {name: dict(reversed(getattr(quantized, name).items())) for name in ("weights", "activations")}
    assert len(turned["weights"]) > 1
    assert tables_sha256(replace(quantized, **turned)) == tables_sha256(quantized)
