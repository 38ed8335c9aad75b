"""The commands of ``python -m benchmarks``: a file each, found by name; ``reports/cli.py`` says what a file holds.

Options are added without importing numpy or torch, before which threads must be pinned; ``run`` imports them. What
cannot be used it refuses with a :class:`CommandError`.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.workshop import Workshop


class CommandError(Exception):
    """Input that cannot be used; the message is one sentence with the remedy."""


def positive(text: str, option: str) -> int:
    """Read the whole number that an option was given.

    Raises:
        CommandError: it is none, or zero.
    """
    from fixtures.options import count

    try:
        return count(text)
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"{option}: {error}.") from None


def writable(path: Path) -> None:
    """Check that a file can be written at ``path``, before minutes are spent on what it is to hold.

    Raises:
        CommandError: it cannot, and why.
    """
    from reports.files import refuse_unwritable
    from reports.runs import RunError

    try:
        refuse_unwritable(path)
    except RunError as error:
        raise CommandError(str(error)) from None


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write a document for people and programs to read, in a folder that is made where there is none.

    Raises:
        CommandError: it cannot be written, and why.
    """
    from reports.files import write
    from reports.runs import RunError

    try:
        write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except RunError as error:
        raise CommandError(str(error)) from None


def opened(options: argparse.Namespace, progress: Callable[[str], None], batch: int = 1) -> "tuple[Workshop, str]":
    """Return the workshop that ``options`` describe, with calls of so many samples, and the model's name.

    Raises:
        CommandError: the model needs packages that are not installed.
        ValueError: there is no such model, or it cannot be used.
    """
    from benchmarks.matrix import model as model_entry
    from benchmarks.own import model_named
    from benchmarks.workshop import Settings, Workshop
    from fixtures.cache import Cache
    from fixtures.model import DataOptions
    from fixtures.plugin import DEFAULT_CACHE
    from quant.registry import missing

    name = model_named(options.model)
    absent = missing(model_entry(name).constants["PACKAGES"])
    if absent:
        raise CommandError(f"{name} needs packages that are not installed: {absent}")
    settings = Settings(int(options.threads), batch, case_seconds=math.inf, data=DataOptions(options.imagenet))
    return Workshop(Cache(options.cache_dir or Path.cwd() / DEFAULT_CACHE), settings, progress), name
