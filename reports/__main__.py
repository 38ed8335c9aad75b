"""``python -m reports``: check saved runs and print their tables."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from reports.record import Run, RunError, full_name, read_run, validate

EXAMPLE = """\
example:
  pytest benchmarks -k int4 --benchmark-json=run.json
  python -m reports validate run.json
  python -m reports table run.json --format markdown > table.md
"""
BAD_INPUT = 4


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, or 4 after printing one sentence for each problem of the input."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except RunError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports",
        description="Read runs that `pytest benchmarks` saved; nothing is measured again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("validate", help="check every record of the runs against the schema")
    check.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    check.set_defaults(command=_validate)
    show = commands.add_parser("table", help="print the table of a run and one sentence of advice")
    show.add_argument("run", type=Path, metavar="RUN.json")
    show.add_argument("--format", choices=("text", "markdown"), default="text")
    show.add_argument("-v", "--verbose", action="store_true", help="add flips, error, bits, coverage and parity")
    show.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    show.add_argument("--section", default="table", help="<!-- begin SECTION --> and <!-- end SECTION --> (table)")
    show.set_defaults(command=_table)
    return parser


def _validate(options: argparse.Namespace) -> int:
    problems, records = [], 0
    for path in options.runs:
        try:
            run = read_run(path)
        except RunError as error:
            problems.append(str(error))
        else:
            problems += _problems(run)
            records += len(run.records)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return BAD_INPUT
    print(f"{records} record{'' if records == 1 else 's'} valid")
    return 0


def _table(options: argparse.Namespace) -> int:
    from reports.embed import embed, machine_line
    from reports.summary import summary

    run = read_run(options.run)
    problems = _problems(run)
    if problems:
        more = f" ({len(problems) - 1} more: python -m reports validate {run.path})" if len(problems) > 1 else ""
        raise RunError(problems[0] + more)
    text = summary(run.records, options.verbose, "github" if options.format == "markdown" else "simple")
    if options.into:
        embed(options.into, options.section, f"{text}\n\n{machine_line(run)}")
    else:
        print(text)
    return 0


def _problems(run: Run) -> list[str]:
    """Every problem of a run's records, each with its file and case."""
    if not run.records:
        return [f"{run.path} holds no record; nothing was measured in that run."]
    names = [_name(record) for record in run.records]
    problems = [
        f"{run.path}: {name}: {problem}"
        for name, record in zip(names, run.records, strict=True)
        for problem in validate(record)
    ]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    return problems + [f"{run.path}: {name} was recorded more than once." for name in repeated]


def _name(record: dict) -> str:
    try:
        return full_name(record)
    except (KeyError, TypeError):
        return "unnamed record"


if __name__ == "__main__":
    sys.exit(main())
