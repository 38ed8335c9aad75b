"""Files that nobody vouches for: whatever is in them, reading ends in a result or one sentence, and runs nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quant
from quant import sensitivity
from quant.backends import target
from quant.checkpoints import read_checkpoint, write_checkpoint
from quant.execution import resolve
from quant.registry import missing
from quant.replaying import read_recipe, recipe_of
from quant.storage import graph_from_json, graph_to_json, load_graph, save_graph
from tests.damage import damage, damaged_bytes, fuzz, in_a_sentence

SEEDS = st.integers(0, 2**32 - 1)
many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
some = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tables(residual_graph, tmp_path_factory):
    folders = {}
    for method, bits in (("rtn", "int4"), ("palette_grouped", "lut3"), ("static", "int8"), ("rtn", "nvfp4")):
        folders[bits] = tmp_path_factory.mktemp(bits)
        quant.save(quant.quantize(residual_graph, method, bits, [(torch.randn(4, 3, 8, 8),)]), folders[bits])
    return folders


@many
@given(st.sampled_from(["int4", "lut3", "int8", "nvfp4"]), SEEDS)
def test_damaged_tables_are_one_sentence_or_mean_something(tables, residual_graph, tmp_path, bits, seed):
    read = fuzz(tables[bits], tmp_path / "damaged", seed, lambda folder: quant.load(folder, residual_graph))
    if read is not None and not read.activations:
        quant.simulate(read)(torch.randn(2, 3, 8, 8))


@many
@given(SEEDS)
def test_a_damaged_graph_is_one_sentence_or_a_graph(residual_graph, tmp_path, seed):
    source = tmp_path / "graph"
    if not source.exists():
        source.mkdir()
        save_graph(residual_graph, source)
    fuzz(source, tmp_path / "damaged", seed, load_graph)


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "mlx", "coreml"])
def artefact(request, residual_graph, tmp_path_factory):
    """A backend and an artefact that it loads."""
    where = target(request.param)
    if missing(where.constant("REQUIRES", {})):
        pytest.skip(missing(where.constant("REQUIRES", {})))
    template, folder = tmp_path_factory.mktemp("template"), tmp_path_factory.mktemp(request.param)
    where.load().template(residual_graph, template, "float32")
    where.load().compile(quant.quantize(residual_graph, "rtn", "int4"), template, folder)
    return where.load(), folder


@some
@given(SEEDS)
def test_a_damaged_artefact_is_one_sentence_or_a_model(artefact, tmp_path, seed):
    backend, folder = artefact
    fuzz(folder, tmp_path / "damaged", seed, lambda damaged: backend.load(damaged, 1, None))


@many
@given(SEEDS)
def test_a_damaged_recipe_is_one_sentence_or_replays_to_one(tied_graph, tmp_path, seed):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe_of(quant.quantize(tied_graph, "rtn", "int4"))))
    damage(path, np.random.default_rng(seed))
    in_a_sentence(lambda: quant.replay(tied_graph, read_recipe(path)))


@many
@given(SEEDS)
def test_damaged_sensitivities_are_one_sentence(tied_graph, tmp_path, seed):
    path = tmp_path / "sensitivity.json"
    sensitivity.Sensitivity("kl", ("a", "b"), ("int4",), np.ones((2, 1)), tied_graph.weights_sha256).save(path)
    damage(path, np.random.default_rng(seed))
    in_a_sentence(sensitivity.load, path, tied_graph)


@some
@given(SEEDS)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, seed):
    path = tmp_path / "state.pt"
    write_checkpoint(path, {"step": 3, "values": torch.arange(20.0), "best": [1, {"a": None}]})
    path.write_bytes(damaged_bytes(path.read_bytes(), np.random.default_rng(seed)))
    in_a_sentence(read_checkpoint, path)


TOUCH = "__import__('pathlib').Path('{path}').touch()"
HOSTILE = {
    "an input": lambda entry, code: entry["inputs"].__setitem__(0, f"x={code}"),
    "an input twice": lambda entry, code: entry["inputs"].append(entry["inputs"][0]),
    "a keyword": lambda entry, code: entry["nodes"][0][3].update({f"a=({code},), b": 1}),
    "a node": lambda entry, code: entry["nodes"][0].__setitem__(0, f'n"), {code}, ("'),
    "a parameter": lambda entry, code: entry["nodes"][0][2].__setitem__(1, {"parameter": f'w"), {code}, ("'}),
    "a type that is a function": lambda entry, code: entry["nodes"][0][2].append({"dtype": "load"}),
    "a value that nobody makes": lambda entry, code: entry["nodes"][0][2].__setitem__(0, {"value": "nowhere"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_names_in_a_graph_are_names(residual_graph, tmp_path, what):
    entry = json.loads(json.dumps(graph_to_json(residual_graph.graphs["forward"])))
    marker = tmp_path / "ran"
    HOSTILE[what](entry, TOUCH.format(path=marker))
    with pytest.raises(ValueError, match=r"cannot be|before it is made|no dtype of torch"):
        graph_from_json(entry)
    assert not marker.exists()


@pytest.mark.parametrize(
    "operator",
    [
        *(
            "_operator.call",
            "_operator.attrgetter",
            "_operator.methodcaller",
            "_operator.setitem",
            "_operator.__name__",
        ),
        *("load_library.__self__.load_library", "aten.from_file.default", "aten.save.default", "torch.sym_nothing"),
        *("torch.load", "math.__dict__", "os.system", "aten.__class__.__init__", "", "..."),
    ],
)
def test_an_operator_that_does_more_than_compute_is_unknown(operator):
    with pytest.raises(ValueError, match=r"unknown operator|opens files"):
        resolve(operator)


def test_nothing_that_is_read_is_unpickled():
    root = Path(quant.__file__).parents[1]
    for path in (
        file for package in ("quant", "fixtures", "benchmarks", "reports") for file in (root / package).rglob("*.py")
    ):
        text = path.read_text()
        assert "allow_pickle=True" not in text
        assert "pickle.load" not in text
        assert "weights_only=False" not in text
        assert text.count("torch.load(") == text.count("weights_only=True"), path
