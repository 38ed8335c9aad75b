"""Putting the files of shards, and of a run and its resumption, together as one run."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.record import record_name
from reports.runs import Run, RunError, problems_of, read_document, run_of
from reports.words import some

Document = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One of the files: what pytest-benchmark wrote, and the run in it."""

    document: Document
    run: Run

    @property
    def shard(self) -> dict[str, int] | None:
        return self.run.quant.get("shard")


def read_part(path: Path) -> Part:
    """Read a file to be merged.

    Raises:
        RunError: as :func:`reports.runs.read_run`.
    """
    document = read_document(path)
    run = run_of(path, document)
    problems = problems_of(run) if run.records else []
    if problems:
        raise RunError(problems[0])
    return Part(document, run)


def merge(parts: Sequence[Part]) -> Document:
    """Return one file that holds the cases of all parts; it is complete if every planned case came to its end in one.

    Records of another environment than the first part's carry their own.

    Raises:
        RunError: the parts are not of one commit, one set of settings and one of data, or share a case.
    """
    for what, value in _MUST_AGREE:
        _refuse_differing(parts, what, value)
    _refuse_other_data(parts)
    _refuse_overlap(parts)
    first = parts[0].document
    home = parts[0].run.machine.get("quant") or {}
    benchmarks = [bench for part in parts for bench in _with_environment(part, home)]
    latest = max(part.document.get("datetime") or "" for part in parts)
    return {**first, "benchmarks": benchmarks, "datetime": latest, "quant": _merged_quant(parts)}


def missing_shards(parts: Sequence[Part]) -> list[int]:
    """Numbers of the shards that are not among the parts; none where the parts are no shards."""
    shards = [part.shard for part in parts if part.shard]
    count = max((shard["of"] for shard in shards), default=0)
    return sorted(set(range(1, count + 1)) - {shard["number"] for shard in shards})


def _merged_quant(parts: Sequence[Part]) -> dict[str, Any]:
    planned = list(dict.fromkeys(name for part in parts for name in part.run.quant.get("planned") or ()))
    kept = {key: value for key, value in parts[0].run.quant.items() if key != "shard"}
    deselected = dict.fromkeys(name for part in parts for name in part.run.quant.get("deselected") or ())
    skipped, failed = ({**_all(parts, key)} for key in ("skipped", "failed"))
    ended = {*(record_name(record) for part in parts for record in part.run.records), *skipped, *failed}
    missing = missing_shards(parts)
    return {
        **kept,
        "planned": planned,
        "deselected": [name for name in deselected if name not in set(planned)],
        "skipped": skipped,
        "failed": failed,
        "complete": ended >= set(planned) and not missing,
        **({"missing_shards": missing} if missing else {}),
    }


def _all(parts: Sequence[Part], key: str) -> dict[str, str]:
    """Reasons of all parts, except for cases that another part measured."""
    measured = {record_name(record) for part in parts for record in part.run.records}
    reasons = {name: reason for part in parts for name, reason in (part.run.quant.get(key) or {}).items()}
    return {name: reason for name, reason in reasons.items() if name not in measured}


def _with_environment(part: Part, home: dict) -> Iterable[Document]:
    own = part.run.machine.get("quant") or {}
    for bench in part.document["benchmarks"]:
        record = (bench.get("extra_info") or {}).get("quant")
        if own == home or record is None:
            yield bench
        else:
            record = {"environment": own, **record}
            yield {**bench, "extra_info": {**bench["extra_info"], "quant": record}}


def _commit(part: Part) -> object:
    return part.run.commit.get("id")


def _changes(part: Part) -> object:
    if not part.run.commit.get("dirty"):
        return "none"
    return part.run.commit.get("changes_sha256") or f"unknown ones in {part.run.path}"


def _versions(part: Part) -> object:
    return (part.run.machine.get("quant") or {}).get("versions") or {}


def _settings(part: Part) -> object:
    return part.run.quant.get("settings") or {}


def _selection(part: Part) -> object:
    return part.run.quant.get("selection") or {} if part.shard else None


def _count(part: Part) -> object:
    return part.shard["of"] if part.shard else None


_MUST_AGREE: tuple[tuple[str, Callable[[Part], object]], ...] = (
    ("commits", _commit),
    ("uncommitted changes", _changes),
    ("settings", _settings),
    ("library versions", _versions),
    ("selections", _selection),
    ("numbers of shards", _count),
)
"""What must be equal in all parts that have it; ``None`` where a part does not."""


def _refuse_differing(parts: Sequence[Part], what: str, value: Callable[[Part], object]) -> None:
    values = [(part, found) for part in parts if (found := value(part)) is not None]
    for part, found in values:
        first, expected = values[0]
        if found != expected:
            told = _differing(found, expected)
            raise RunError(
                f"{part.run.path} and {first.run.path} are of different {what} ({told}); measure one of them again."
            )


def _differing(found: object, expected: object) -> str:
    if not isinstance(found, dict):
        return f"{found} and {expected}"
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    return ", ".join(f"{name}: {found.get(name)} and {expected.get(name)}" for name in names)


def _refuse_other_data(parts: Sequence[Part]) -> None:
    """Each model must have been judged on the same samples everywhere."""
    seen: dict[str, tuple[str, Part]] = {}
    for part in parts:
        for record in part.run.records:
            model, data = record["case"]["model"], record["scores"].get("dataset_sha256")
            expected, first = seen.setdefault(model, (data, part)) if data else (data, part)
            if data != expected:
                raise RunError(
                    f"{part.run.path} and {first.run.path} judged {model} on different data; measure one of them again."
                )


def _refuse_overlap(parts: Sequence[Part]) -> None:
    names = [(record_name(record), part) for part in parts for record in part.run.records]
    twice = [name for name, times in Counter(name for name, _ in names).items() if times > 1]
    if twice:
        files = " and ".join(str(part.run.path) for name, part in names if name == twice[0])
        raise RunError(f"Both {files} measured {some(twice)}; a case may come from one part only.")
