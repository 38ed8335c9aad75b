import json

import pytest
import torch

import quant
from quant.scheme import CODEBOOK_FORMATS, PALETTE_WORDS
from quant.storage import load_graph, save_graph


def test_a_graph_survives_a_round_trip_bit_for_bit(tied_graph, tmp_path):
    save_graph(tied_graph, tmp_path)
    read = load_graph(tmp_path)
    assert read.graphs == tied_graph.graphs
    assert read.weights_sha256 == tied_graph.weights_sha256
    tokens = torch.randint(0, 40, (3, 5))
    assert torch.equal(read.module()(tokens)[0], tied_graph.module()(tokens)[0])


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        *(("rtn", word) for word in ("int8", "int4", "int3_g16", "int2", *CODEBOOK_FORMATS)),
        *(("palette", word) for word in PALETTE_WORDS),
        ("palette_grouped", "lut4"),
        ("static", "int8"),
        ("dynamic", "w4a8"),
        ("float", "bf16"),
    ],
)
def test_tables_survive_a_round_trip_bit_for_bit(residual_graph, tmp_path, method, bits):
    image = torch.randn(4, 3, 8, 8)
    quantized = quant.quantize(residual_graph, method, bits, [(image,)])
    quant.save(quantized, tmp_path)
    read = quant.load(tmp_path, residual_graph)
    assert read.scheme == quantized.scheme
    assert read.recipe == quantized.recipe
    assert read.activations.keys() == quantized.activations.keys()
    assert read.bits_per_weight == quantized.bits_per_weight
    assert torch.equal(quant.simulate(read)(image)[0], quant.simulate(quantized)(image)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.json", "tables.safetensors"]


def test_four_bit_codes_take_half_a_byte_each(tied_graph, tmp_path):
    quant.save(quant.quantize(tied_graph, "rtn", "int4"), tmp_path)
    codes = 40 * 24 + 24 * 24
    assert (tmp_path / "tables.safetensors").stat().st_size < codes / 2 + 64 * 3 + 1500


@pytest.mark.parametrize(("word", "bits"), {"mxfp4": 4.25, "nvfp4": 4.5, "mxfp8": 8.25, "nf4": 4.25}.items())
def test_codebooks_take_on_disk_what_they_are_counted_as(tmp_path, word, bits):
    graph = quant.capture(torch.nn.Linear(256, 512, bias=False).eval(), (torch.randn(2, 256),))
    quant.save(quant.quantize(graph, "rtn", word), tmp_path)
    assert (tmp_path / "tables.safetensors").stat().st_size == pytest.approx(512 * 256 * bits / 8, abs=500)


def test_tables_of_other_weights_are_refused(residual_graph, tied_graph, tmp_path):
    quant.save(quant.quantize(residual_graph, "rtn", "int4"), tmp_path)
    with pytest.raises(ValueError, match="other weights"):
        quant.load(tmp_path, tied_graph)


@pytest.mark.parametrize("name", ["tables.safetensors", "recipe.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_file_is_one_sentence(residual_graph, tmp_path, name, damage):
    quant.save(quant.quantize(residual_graph, "rtn", "int4"), tmp_path)
    path = tmp_path / name
    if damage == "remove":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"\xff" * len(content))
    with pytest.raises(ValueError, match="quantize the model again"):
        quant.load(tmp_path, residual_graph)


def test_a_recipe_without_its_tables_is_one_sentence(residual_graph, tmp_path):
    quant.save(quant.quantize(residual_graph, "rtn", "int4"), tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    recipe["weights"]["absent.weight"] = recipe["weights"]["head.weight"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="quantize the model again"):
        quant.load(tmp_path, residual_graph)
