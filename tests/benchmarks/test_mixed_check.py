import sys

from benchmarks import mixed_check


def test_a_model_is_checked_in_every_format_and_at_every_size(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixed_check", "digits", "--backend", "torch", "--samples", "60"])
    mixed_check.main()
    title, _, _, *rows, rank = capsys.readouterr().out.strip().splitlines()
    assert title == "digits on torch"
    cells = [row.rsplit("accuracy", 1)[0].rsplit(maxsplit=5) for row in rows]
    assert [label for label, *_ in cells] == [
        *[label for word in mixed_check.UNIFORM for label in (word, "mixed, no larger")],
        "greedy, 4.5 bits",
        "mixed, 4.5 bits",
    ]
    for (_, _, _, alike, *_), (_, _, _, mixed, *_) in zip(cells[0:6:2], cells[1:6:2], strict=True):
        assert float(mixed) <= float(alike)
    assert all(float(error) > 0 for *_, error in cells)
    assert "weights alone: Spearman" in rank
