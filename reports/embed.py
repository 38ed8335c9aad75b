"""Putting generated text into a document between two markers, so that a table in a README never goes stale by hand."""

from pathlib import Path

from reports.files import write
from reports.machines import instructions
from reports.runs import Run, RunError


def embed(document: Path, section: str, content: str) -> None:
    """Replace what stands between ``<!-- begin SECTION -->`` and ``<!-- end SECTION -->`` in ``document``.

    Raises:
        RunError: the document cannot be read, or has not exactly one such pair of markers.
    """
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{document} cannot be read ({error.strerror}); name an existing document.") from None
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after:
        raise RunError(f"{document} needs the lines '{begin}' and '{end}' once, in this order.")
    write(document, f"{before}{begin}\n{content.strip()}\n{end}{after}")


def machine_line(run: Run) -> str:
    """Name the machine, threads and library versions of a run in one sentence."""
    environment = run.machine.get("quant", {})
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    threads, pages = environment.get("threads"), ", huge pages" if environment.get("huge_pages") else ""
    return (
        f"Measured on {environment.get('cpu', 'an unnamed processor')} ({environment.get('system', 'unknown system')}, "
        f"{instructions(environment) or 'no vector extensions known'}), "
        f"{threads} thread{'' if threads == 1 else 's'}{pages}; {versions}."
    )
