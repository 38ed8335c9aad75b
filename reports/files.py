"""Files that commands write: refused before anything is spent on them, and whole or not at all."""

import os
from pathlib import Path

from reports.runs import RunError


def refuse_unwritable(path: Path) -> None:
    """Check that a file can be written at ``path``, in a folder that there may not be yet; nothing is made.

    Raises:
        RunError: it cannot, and why.
    """
    try:
        if path.is_dir():
            raise RunError(f"{path} is a folder: name the file to write.")
        place = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    except OSError as error:  # a folder on the way that may not be looked into
        raise RunError(f"{path} cannot be written: {error.strerror}.") from None
    if place != path.absolute() and not place.is_dir():
        raise RunError(f"{path} cannot be written: {place} is not a folder.")
    if not os.access(place, os.W_OK):
        raise RunError(f"{path} cannot be written: there is no permission to write {place}.")


def write(path: Path, text: str) -> None:
    """Write a whole file, in a folder that is made where there is none.

    Raises:
        RunError: it cannot be written, and why; what was there before still is.
    """
    refuse_unwritable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # such as /dev/stdout, which nothing may take the place of
            path.write_text(text, encoding="utf-8")
            return
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from None
