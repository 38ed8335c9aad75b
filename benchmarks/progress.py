"""What is shown while a run goes on: a row for each finished case, and what a long step is doing."""

import time

import pytest


class LiveLines:
    """Lines on the terminal between pytest's own, outside its capture.

    pytest writes a file's name and then a letter per test; a line of ours starts below, and makes pytest neither name
    the file again nor leave an empty line.
    """

    SECONDS_BETWEEN_LINES = 10.0
    SECONDS_BETWEEN_REWRITES = 0.2

    def __init__(self, config: pytest.Config) -> None:
        self._reporter = config.pluginmanager.getplugin("terminalreporter")
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._silent = self._reporter is None or hasattr(config, "workerinput")
        self._in_place = not self._silent and self._reporter.isatty
        self._on_own_line = False
        self._last = time.monotonic()

    def row(self, text: str) -> None:
        """Show a finished case."""
        if self._silent:
            return
        self._start_line()
        if self._in_place:
            self._reporter.rewrite("", erase=True)
            text = f"\r{text}"
        self._reporter.write(f"{text}\n", flush=True)

    def progress(self, text: str) -> None:
        """Show the current step: rewritten in place on a terminal, a line now and then in a log."""
        if self._silent or not self._is_due():
            return
        with self._capture.global_and_fixture_disabled():
            self._start_line()
            if self._in_place:
                self._reporter.rewrite(f"  {text}", erase=True)
            else:
                self._reporter.write(f"  {text}\n", flush=True)

    def starting(self) -> None:
        """Note that a test starts, whose name pytest writes first when it is verbose."""
        if not self._silent and self._reporter.showlongtestinfo:
            self.interrupted()

    def interrupted(self) -> None:
        """Note that pytest wrote a letter of its own, so that the next line starts below it."""
        self._on_own_line = False

    def _start_line(self) -> None:
        if not self._on_own_line:
            path = self._reporter.currentfspath
            self._reporter.ensure_newline()
            self._reporter.currentfspath = path
            self._on_own_line = True

    def _is_due(self) -> bool:
        now = time.monotonic()
        pause = self.SECONDS_BETWEEN_REWRITES if self._in_place else self.SECONDS_BETWEEN_LINES
        if now - self._last < pause:
            return False
        self._last = now
        return True
