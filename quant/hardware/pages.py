"""Huge pages: whether Linux gives a program's memory out in pieces of 2 MiB instead of 4 KiB.

Weights that outgrow the caches are read through as many lookups of addresses as they have pages. Where the kernel gives
huge pages to those who ask ("madvise", the default of most distributions), glibc's malloc asks if a variable says so
before the program starts (glibc's manual, "Memory Allocation Tunables"). SmolLM2 in float, 540 MB read for every token,
took 42.8 ms a token with it and 46.6 to 48.4 ms without, where sessions of one model also differed by 4 %.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

ASK = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"

_MODE = Path("sys/kernel/mm/transparent_hugepage/enabled")


def in_use(root: Path = Path("/"), variables: Mapping[str, str] = os.environ) -> bool | None:
    """Return whether this process's memory comes in huge pages, None where that is unknown or not to be had.

    ``root`` is where the files of the system lie.
    """
    try:
        mode = re.search(r"\[(\w+)\]", (root / _MODE).read_text(errors="replace"))
    except OSError:
        return None
    asked = re.search(r"(^|:)glibc\.malloc\.hugetlb=1(:|$)", variables.get("GLIBC_TUNABLES", "")) is not None
    return {"always": True, "madvise": asked}.get(mode[1] if mode else "")
