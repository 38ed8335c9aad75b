import pytest

from reports.embed import embed, machine_line
from reports.runs import Run, RunError


def test_replaces_only_what_stands_between_its_markers(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("top\n<!-- begin a -->\nold\n<!-- end a -->\n<!-- begin b -->\nkept\n<!-- end b -->\n")
    embed(document, "a", "new\n")
    embed(document, "a", "newer")
    assert document.read_text() == (
        "top\n<!-- begin a -->\nnewer\n<!-- end a -->\n<!-- begin b -->\nkept\n<!-- end b -->\n"
    )


@pytest.mark.parametrize(
    "text", ["", "<!-- begin a -->", "<!-- end a --><!-- begin a -->", "<!-- begin a --><!-- end a -->" * 2]
)
def test_missing_or_repeated_markers_are_named_and_nothing_is_written(tmp_path, text):
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(RunError, match="begin a"):
        embed(document, "a", "new")
    assert document.read_text() == text


def test_a_missing_document_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        embed(tmp_path / "absent.md", "a", "new")


def test_the_machine_is_named_with_threads_and_versions(tmp_path):
    environment = {
        "cpu": "Chip 9",
        "system": "Linux x86_64",
        "isa": ["avx2"],
        "threads": 1,
        "versions": {"torch": "2.9"},
    }
    line = machine_line(Run(tmp_path, [], machine={"quant": environment}))
    assert line == "Measured on Chip 9 (Linux x86_64, avx2), 1 thread; torch 2.9."
    line = machine_line(Run(tmp_path, [], machine={"quant": environment | {"huge_pages": True}}))
    assert line == "Measured on Chip 9 (Linux x86_64, avx2), 1 thread, huge pages; torch 2.9."
