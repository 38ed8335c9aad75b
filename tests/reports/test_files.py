"""Files that commands write: their folders are made, and what cannot be written is refused in one sentence."""

import os

import pytest

from reports.files import refuse_unwritable, write
from reports.runs import RunError


def test_the_folder_of_a_file_is_made(tmp_path):
    write(tmp_path / "new" / "er" / "table.md", "| a |")
    assert (tmp_path / "new" / "er" / "table.md").read_text() == "| a |"
    assert [path.name for path in (tmp_path / "new" / "er").iterdir()] == ["table.md"]


def test_a_check_makes_nothing(tmp_path):
    refuse_unwritable(tmp_path / "new" / "table.md")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"), [("folder", "is a folder: name the file"), ("file/table.md", "file is not a folder")]
)
@pytest.mark.parametrize("act", [refuse_unwritable, lambda path: write(path, "")])
def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path, name, why, act):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match=why):
        act(tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_without_permission_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    # To root, whom tests often run as, nothing is forbidden.
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(RunError, match=r"table.md cannot be written: there is no permission to write \S+\."):
        refuse_unwritable(tmp_path / "table.md")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    path.write_text("before")

    def full(self, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(RunError, match="No space left on device"):
        write(path, "after")
    assert path.read_text() == "before"
