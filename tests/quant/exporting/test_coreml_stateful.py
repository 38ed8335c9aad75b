"""A decoder that Core ML goes on with by itself, against the same decoder reading whole texts."""

import json

import numpy as np
import pytest
import torch

import quant
from fixtures.zoo._llama import Decoder, Step
from quant.exporting import format_named, formats
from quant.generation import CacheShape, capture_step

if formats()["coreml_stateful"].missing():
    pytest.skip(formats()["coreml_stateful"].missing(), allow_module_level=True)

SIZES = {"vocabulary": 48, "context": 24, "layers": 2, "width": 64, "heads": 4, "shared": 2}
LENGTH = 14


@pytest.fixture(scope="module")
def graphs():
    """The graph that reads whole texts, and that of a step."""
    torch.manual_seed(0)
    decoder, step = Decoder(**SIZES).eval(), Step(**SIZES).eval()
    for value in decoder.parameters():
        torch.nn.init.normal_(value, std=0.3)
    step.load_state_dict(decoder.state_dict())
    whole = quant.capture(decoder, (torch.randint(0, 48, (2, 7)),), ({0: "batch", 1: "sequence"},))
    return whole, capture_step(step, CacheShape(tensors=4, heads=2, size=16))


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(0).integers(0, SIZES["vocabulary"], (3, LENGTH))


@pytest.fixture(scope="module")
def exported(graphs, texts, tmp_path_factory):
    """``exported("rtn", "int4")``: the tables, and the package that was made of them and has passed."""
    made = {}

    def export(method, bits):
        if (method, bits) not in made:
            quantized = quant.quantize(graphs[0], method, bits)
            folder = tmp_path_factory.mktemp("package")
            made[method, bits] = (
                quantized, quant.export(quantized, "coreml_stateful", folder, [texts], step=graphs[1])
            )  # fmt: skip
        return made[method, bits]

    return export


@pytest.mark.parametrize(("method", "bits"), [("rtn", "int4"), ("palette", "lut4"), ("float", "fp16")])
def test_token_by_token_it_foretells_what_the_whole_texts_do(exported, texts, method, bits):
    quantized, path = exported(method, bits)
    found = json.loads((path.parent / "validation.json").read_text())
    assert found["verdict"] == "pass"
    assert found["parity"]["samples"] == len(texts)
    assert found["parity"]["error"] < 0.01
    weights = len(quantized.weights)
    assert found["codes"] == {"weights": weights, "identical": weights, "different": []}


def test_a_call_takes_a_token_and_its_place_and_the_rest_lies_in_states(exported):
    from coremltools.models.utils import load_spec

    description = load_spec(str(exported("rtn", "int4")[1])).description
    shapes = {entry.name: tuple(entry.type.multiArrayType.shape) for entry in description.input}
    assert shapes == {"input_ids": (1, 1), "positions": (1,)}
    assert [entry.type.stateType.arrayType.shape[2] for entry in description.state] == [LENGTH] * 4
    assert len(description.output) == 1


def test_it_generates_the_tokens_that_reading_everything_again_does(exported, texts):
    quantized, path = exported("rtn", "int4")
    run, module = format_named("coreml_stateful").load().load(path), quant.simulate(quantized)
    found = expected = texts[:1, :4]
    while expected.shape[1] < LENGTH:
        with torch.inference_mode():
            following = module(torch.from_numpy(expected))[0][:, -1].argmax(-1, keepdim=True)
        expected = np.append(expected, following.numpy(), axis=1)
        found = np.append(found, run(found)[0][:, -1].argmax(-1, keepdims=True), axis=1)
    assert np.array_equal(found, expected)


def test_what_a_text_leaves_in_the_cache_is_not_seen_by_the_next(exported, texts):
    run = format_named("coreml_stateful").load().load(exported("rtn", "int4")[1])
    first = run(texts[:1])[0]
    run(texts[1:2])
    assert np.array_equal(run(texts[:1])[0], first)


def test_without_a_step_it_is_refused_in_a_sentence(graphs, tmp_path):
    with pytest.raises(ValueError, match="holds decoders that go on with texts, and no step of one is given"):
        quant.export(quant.quantize(graphs[0], "rtn", "int4"), "coreml_stateful", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_activations_in_fixed_ranges_are_refused(graphs, texts, tmp_path):
    quantized = quant.quantize(graphs[0], "static_plain", "int8", [(texts,)])
    with pytest.raises(ValueError, match="no activations in fixed ranges"):
        quant.export(quantized, "coreml_stateful", tmp_path, [texts], step=graphs[1])
