"""Whether huge pages are in use, by what the kernel gives and what malloc asks for."""

import subprocess
import sys

import pytest

from quant.hardware import Memory, _linux, pages

MODE = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.mark.parametrize(
    ("mode", "tunables", "expected"),
    [
        ("[always] madvise never\n", "", True),
        ("always [madvise] never\n", "", False),
        ("always [madvise] never\n", "glibc.malloc.hugetlb=1", True),
        ("always [madvise] never\n", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1", True),
        ("always [madvise] never\n", "glibc.malloc.hugetlb=0", False),
        ("always madvise [never]\n", "glibc.malloc.hugetlb=1", None),
        ("", "glibc.malloc.hugetlb=1", None),
    ],
)
def test_the_kernel_gives_what_is_asked_for(root, mode, tunables, expected):
    root.write(MODE, mode)
    assert pages.in_use(root.path, {"GLIBC_TUNABLES": tunables}) is expected
    assert pages.in_use(root.path, {}) is (True if "[always]" in mode else False if "[madvise]" in mode else None)


def test_where_the_kernel_says_nothing_nothing_is_known(root):
    assert pages.in_use(root.path, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}) is None
    assert _linux.memory(root.path) == Memory()


@pytest.mark.skipif(pages.in_use() is None, reason="this kernel has no huge pages to give")
def test_malloc_asks_as_it_is_told():
    """A process that says to be in huge pages holds an array in them, by the kernel's own account."""
    program = "import numpy; a = numpy.ones(2**24); print(open('/proc/self/smaps_rollup').read())"
    variable, _, value = pages.ASK.partition("=")
    done = subprocess.run([sys.executable, "-c", program], env={variable: value}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("AnonHugePages:"))
    assert int(held) > 2**16  # KiB; the array takes twice as much, and the kernel may lack pieces for some of it
