"""A folder that stands for / of a Linux machine."""

from pathlib import Path

import pytest


class Root:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def cpus(self, online: str, siblings: dict[int, str], caches: dict[int, list[tuple[int, str, str, str]]]) -> None:
        """Write the topology: the processors that share a core, and caches as (level, type, size, who shares it)."""
        self.write("sys/devices/system/cpu/online", f"{online}\n")
        for cpu, together in siblings.items():
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{together}\n")
        for cpu, found in caches.items():
            for index, values in enumerate(found):
                for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
                    self.write(f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}/{name}", f"{value}\n")


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path)
