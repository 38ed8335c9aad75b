"""Where a case ran: what must agree before two runs' times, or ratios of times, may be compared."""

from typing import Any

from reports.record import Record
from reports.runs import Run

Environment = dict[str, Any]

RUNTIME = ("isa", "isa_caps", "huge_pages", "threads", "versions", "settings")
"""What decides a ratio of two times that were measured together; absolute times depend on all of an environment."""


def environment_of(run: Run, record: Record) -> Environment:
    """Return the environment a case ran in: its own where a run was merged from several machines, else its run's.

    With it the settings of the runtime, where they were not its defaults.
    """
    environment = record.get("environment") or run.machine.get("quant") or {}
    tuned = record.get("settings")
    return {**environment, "settings": tuned} if tuned else environment


def differences(current: Environment, saved: Environment, names: tuple[str, ...] | None = None) -> list[str]:
    """Return what differs between two environments, all of it or what is named, as ``threads: 1, was 2``."""
    compared = sorted({*current, *saved}) if names is None else names
    return [
        f"{name}: {_shown(current.get(name), saved.get(name))}, was {_shown(saved.get(name), current.get(name))}"
        for name in compared
        if current.get(name) != saved.get(name)
    ]


def instructions(environment: Environment) -> str:
    """Return the instruction sets of an environment, and what kept libraries from using them."""
    caps = (environment.get("isa_caps") or {}).items()
    return " ".join([*(environment.get("isa") or []), *(f"{name}={value}" for name, value in caps)])


def _shown(value: object, other: object) -> str:
    """Of versions and caps only those that differ, of the rest all."""
    if isinstance(value, dict):
        other = other if isinstance(other, dict) else {}
        differing = [f"{name} {value[name]}" for name in value if value[name] != other.get(name)]
        return ", ".join(differing) or "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
