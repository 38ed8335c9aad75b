import io

import pytest

from benchmarks import lines
from benchmarks.lines import Lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_of_progress_now_and_then(clock):
    stream = io.StringIO()
    shown = Lines(stream)
    for second in range(0, 25, 5):
        clock[0] = float(second)
        shown.progress(f"step {second}")
    shown.result("done")
    assert stream.getvalue() == "  step 10\n  step 20\ndone\n"


def test_a_terminal_shows_progress_in_place_and_results_for_good(clock):
    stream = Terminal()
    shown = Lines(stream)
    clock[0] = 1.0
    shown.progress("step 1")
    clock[0] = 1.1
    shown.progress("too soon")
    shown.result("done")
    assert stream.getvalue() == "  step 1\r" + " " * 8 + "\rdone\n"
