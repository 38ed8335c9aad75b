"""Wording that several reports share."""

from collections.abc import Sequence


def some(names: Sequence[str]) -> str:
    """``a, b, c and 2 more``: the first three of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
