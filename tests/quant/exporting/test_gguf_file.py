"""The GGUF reader and writer, against each other, against the published reader, and on damaged files."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.exporting import gguf_file
from quant.exporting.gguf_file import F16, F32, Q4_0, Q4_1, Q8_0, Tensor

RANDOM = np.random.default_rng(0)
SCALE = RANDOM.uniform(0.01, 1, (6, 2)).astype(np.float16).astype(np.float32)
MINIMUM = RANDOM.normal(size=(6, 2)).astype(np.float16).astype(np.float32)
CODES = {
    Q8_0: RANDOM.integers(-127, 128, (6, 64)).astype(np.int8),
    Q4_0: RANDOM.integers(-7, 8, (6, 64)).astype(np.int8),
    Q4_1: RANDOM.integers(0, 16, (6, 64)).astype(np.uint8),
}
PACKED = {
    Q8_0: gguf_file.pack_q8_0(CODES[Q8_0], SCALE),
    Q4_0: gguf_file.pack_q4_0(CODES[Q4_0], SCALE),
    Q4_1: gguf_file.pack_q4_1(CODES[Q4_1], SCALE, MINIMUM),
}
VALUES = {kind: codes * SCALE.repeat(32, 1) for kind, codes in CODES.items()}
VALUES[Q4_1] = VALUES[Q4_1] + MINIMUM.repeat(32, 1)
METADATA = {"general.architecture": "llama", "llama.block_count": 7, "llama.rope.freq_base": 10000.0, "ünïcode": "ja"}


@pytest.fixture
def path(tmp_path):
    tensors = {f"quantized.{kind}": Tensor(kind, (6, 64), data) for kind, data in PACKED.items()}
    tensors["real"] = Tensor(F32, (3,), np.array([1, 2, 3], np.float32))
    tensors["half"] = Tensor(F16, (2, 5), np.arange(10, dtype=np.float16).reshape(2, 5))
    gguf_file.write(tmp_path / "model.gguf", METADATA, tensors)
    return tmp_path / "model.gguf"


def test_a_file_survives_a_round_trip(path):
    metadata, tensors = gguf_file.read(path)
    assert metadata == METADATA
    for kind, codes in CODES.items():
        found = tensors[f"quantized.{kind}"]
        assert found.shape == (6, 64)
        np.testing.assert_array_equal(gguf_file.codes_of(found), codes)
        assert gguf_file.codes_of(found).dtype == codes.dtype
        np.testing.assert_array_equal(gguf_file.dequantized(found), VALUES[kind])
    np.testing.assert_array_equal(tensors["real"].data, [1, 2, 3])
    np.testing.assert_array_equal(gguf_file.dequantized(tensors["half"]), np.arange(10.0).reshape(2, 5))


def test_the_published_reader_finds_the_same(path):
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(str(path))
    assert reader.fields["llama.block_count"].contents() == 7
    assert reader.fields["general.architecture"].contents() == "llama"
    for tensor in reader.tensors:
        kind = tensor.name.removeprefix("quantized.")
        if kind != tensor.name:
            values = dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_allclose(values, VALUES[int(kind)], rtol=1e-6)
            assert list(tensor.shape) == [64, 6]


def test_data_lie_at_multiples_of_the_alignment(path):
    content, (_, tensors) = path.read_bytes(), gguf_file.read(path)
    for tensor in tensors.values():
        assert content.index(np.ascontiguousarray(tensor.data).tobytes()) % gguf_file.ALIGNMENT == 0


@pytest.mark.parametrize("kind", [2, 30])
def test_tensors_of_unknown_types_are_refused_by_name(tmp_path, kind):
    gguf_file.write(tmp_path / "m.gguf", {}, {"odd": Tensor(kind, (3, 5), np.zeros(60, np.uint8))})
    with pytest.raises(ValueError, match="'odd' as a type that is not read"):
        gguf_file.read(tmp_path / "m.gguf")


def metadata_of(tmp_path, kind, value):
    """What is read of a file whose one entry has this type and these bytes."""
    path, key = tmp_path / "m.gguf", b"tokens"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    return gguf_file.read(path)[0]


def test_lists_of_other_writers_are_read(tmp_path):
    words = b"".join(struct.pack("<Q", len(word)) + word for word in (b"a", b"token"))
    assert metadata_of(tmp_path, 9, struct.pack("<IQ", 8, 2) + words) == {"tokens": ["a", "token"]}
    assert metadata_of(tmp_path, 9, struct.pack("<IQ3f", 6, 3, 0.5, -1, 2)) == {"tokens": [0.5, -1, 2]}


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [(9, struct.pack("<IQ", 9, 1), "arrays of arrays"), (13, b"", "metadata of an unknown type 13")],
)
def test_metadata_that_are_not_read_are_refused(tmp_path, kind, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        metadata_of(tmp_path, kind, value)


def test_a_tensor_of_too_many_dimensions_is_damage(tmp_path):
    entry = struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry)
    with pytest.raises(ValueError, match="a tensor of 2147483648 dimensions: it is damaged"):
        gguf_file.read(tmp_path / "m.gguf")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_files_end_in_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    gguf_file.write(path, METADATA, {"t": Tensor(Q8_0, (6, 64), PACKED[Q8_0])})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 250))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        gguf_file.read(path)


def test_a_count_beyond_all_bounds_does_not_take_memory(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62))
    with pytest.raises(ValueError, match="cut short"):
        gguf_file.read(tmp_path / "m.gguf")
