import pytest
import torch

from quant.checkpoints import read_checkpoint, write_checkpoint


def test_what_was_written_is_read_and_the_folder_made(tmp_path):
    path = tmp_path / "folder" / "state.pt"
    assert read_checkpoint(path) is None
    for step in (1, 2):
        write_checkpoint(path, {"step": step, "values": torch.arange(3), "best": None})
    state = read_checkpoint(path)
    assert state["step"] == 2
    assert state["values"].tolist() == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", "short"])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "state.pt"
    write_checkpoint(path, {"values": torch.arange(1000)})
    path.write_bytes(path.read_bytes()[:700] if content == "short" else content)
    with pytest.raises(ValueError, match=r"state\.pt cannot be read \(.+\): delete it to begin anew\."):
        read_checkpoint(path)


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"step": print}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)
