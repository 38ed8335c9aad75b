"""The commands of ``python -m benchmarks``: a file each, found by name; ``reports/cli.py`` says what a file holds.

Options are added without importing numpy or torch, before which threads must be pinned; ``run`` imports them. What
cannot be used it refuses with a :class:`CommandError`.
"""


class CommandError(Exception):
    """Input that cannot be used; the message is one sentence with the remedy."""
