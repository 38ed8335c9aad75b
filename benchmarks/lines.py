"""Lines on a terminal, or in a log, while a command works: what is known for good, and what it is doing."""

import sys
import time
from typing import TextIO


class Lines:
    """Results stay; the current step is rewritten in place on a terminal, and is a line now and then in a log."""

    SECONDS_BETWEEN_LINES = 10.0
    SECONDS_BETWEEN_REWRITES = 0.2

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._last, self._shown = time.monotonic(), 0

    def result(self, text: str) -> None:
        """Show a line that stays."""
        self._erase()
        print(text, file=self._stream, flush=True)

    def progress(self, text: str) -> None:
        """Show the current step, unless one was shown only just now."""
        now = time.monotonic()
        if now - self._last < (self.SECONDS_BETWEEN_REWRITES if self._in_place else self.SECONDS_BETWEEN_LINES):
            return
        self._last = now
        self._erase()
        if self._in_place:
            self._stream.write(f"  {text}")
            self._stream.flush()
            self._shown = len(text) + 2
        else:
            print(f"  {text}", file=self._stream, flush=True)

    def done(self) -> None:
        """Leave no step on a terminal."""
        self._erase()

    def _erase(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0
