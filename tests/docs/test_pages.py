"""Every command of the documentation runs, in a copy of the repository, page by page from top to bottom."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COPIED = ("benchmarks", "examples", "fixtures", "quant", "reports", "conftest.py", "pyproject.toml")
_BLOCK = re.compile(r"^```(?P<kind>\w+)(?P<platform> macos)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (?P<path>\S+\.py)\n")
_LINK = re.compile(r"\]\((?P<target>[^)#]+)")


def blocks(page):
    """The blocks of a page that this platform can run: ("file", path, text) and ("command", line)."""
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        named = _FILE.match(block["text"])
        if block["kind"] == "python" and named:
            yield "file", named["path"], block["text"][named.end() :]
        elif block["kind"] == "console" and (not block["platform"] or sys.platform == "darwin"):
            lines = block["text"].replace("\\\n", " ").splitlines()
            yield from (("command", line.removeprefix("$ ")) for line in lines if line.startswith("$ "))


@pytest.fixture(scope="session")
def cache(tmp_path_factory, worker_id):
    """What is made once for all pages, by whichever worker needs it first."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def copy(tmp_path, cache):
    """The repository's own files, in which a page may write; compiled ones too, but for those being written."""
    ignored = shutil.ignore_patterns("*.pyc.*")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "build").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "quant").symlink_to(cache, target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(page, copy):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # Whether a command runs does not take the two seconds for which each case is timed.
    environment |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "--time-budget=0.1"}
    for kind, *content in blocks(page):
        if kind == "file":
            path, text = content
            (copy / path).write_text(text, encoding="utf-8")
            continue
        done = subprocess.run(
            shlex.split(content[0]), cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{content[0]}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"


def test_every_page_is_in_the_index_and_every_link_leads_somewhere():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index
        for link in _LINK.finditer(page.read_text(encoding="utf-8")):
            assert "://" in link["target"] or (page.parent / link["target"]).exists(), f"{page.name}: {link['target']}"


def test_the_front_page_leads_to_the_pages():
    assert "(docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
