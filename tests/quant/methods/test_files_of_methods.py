"""A file in the folder of methods: what it offers is understood, or one sentence names the file and the remedy."""

import pytest

from quant.methods import methods_of

FACTS = {"family": "weight_only", "bits": ("int8", "int4")}


def of_file(text):
    return text if isinstance(text, str) else f"METHODS = {text!r}\n"


@pytest.fixture
def offered(tmp_path):
    """``offered({"clipped": facts}, ...)`` returns the methods of files called one.py, two.py, ..."""

    def write(*texts):
        for name, text in zip(("one.py", "two.py"), texts, strict=False):
            (tmp_path / name).write_text(of_file(text))
        return methods_of(tmp_path, "example")

    return write


def test_a_file_offers_its_methods_and_a_helper_none(offered, tmp_path):
    (tmp_path / "_helper.py").write_text("")
    found = offered({"clipped": {**FACTS, "core": ("int4",)}, "clipped_more": FACTS})
    assert [(name, method.bits, method.core) for name, method in found.items()] == [
        ("clipped", ("int8", "int4"), ("int4",)),
        ("clipped_more", ("int8", "int4"), ()),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def quantize(): pass", "has no literal METHODS: begin it with METHODS = {.one.: "),
        ("METHODS = dict(clipped={})", "has no literal METHODS"),
        ("METHODS = {\n", "one.py:1: '{' was never closed"),
        ({"clipped": {**FACTS, "family": "weights"}}, r"METHODS\['clipped'\]: unknown family of methods 'weights'"),
        ({"clipped": {**FACTS, "family": "static"}}, r"METHODS\['clipped'\]: .*int4"),
        ({"clipped": {**FACTS, "bits": ("int44",)}}, "unknown bits word 'int44': did you mean int4"),
        ({"clipped": {**FACTS, "bits": "int4"}}, r"bits is 'int4': write a tuple of words, such as \(.int4.,\)"),
        ({"clipped": {"family": "weight_only"}}, "missing .* 'bits': the facts of a method are family, bits"),
        ({"clipped": {**FACTS, "data": True}}, "unexpected keyword argument 'data': the facts of a method are"),
        ({"clipped": {**FACTS, "core": ("int3",)}}, r"core is \('int3',\): write those of its bits"),
        ({"clip-1": FACTS}, "write it as a word, with underscores"),
    ],
)
def test_what_is_not_understood_is_one_sentence_with_the_file(offered, tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as caught:
        offered(text)
    assert str(tmp_path / "one.py") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_cannot_offer_one_method(offered):
    with pytest.raises(ValueError, match=r"two.py: one.py offers 'clipped' already: choose another name"):
        offered({"clipped": FACTS}, {"clipped": FACTS})
