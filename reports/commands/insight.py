"""Print which methods win on each family of networks, and by how much, or write it into a document.

Methods of one model, width and backend are paired sample by sample; where no test tells them apart they are tied.
Give the runs of several models, or one run of all.

  pytest benchmarks -m full -k "int4 and onnxruntime" --benchmark-disable --benchmark-json=run.json
  python -m reports insight run.json
"""

import argparse
from pathlib import Path

from reports.runs import RunError
from reports.storage import open_run

HELP = "print which methods win on each family of networks, and by how much"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    parser.add_argument(
        "--section", default="insight", help="<!-- begin SECTION --> and <!-- end SECTION --> (insight)"
    )


def run(options: argparse.Namespace) -> int:
    from reports.embed import embed, machine_line
    from reports.insight import insight_table

    runs = [open_run(name) for name in options.runs]
    markdown = options.into or options.format == "markdown"
    table = insight_table(runs, "github" if markdown else "simple")
    if not table:
        raise RunError(
            f"{', '.join(options.runs)}: no two methods quantized one model to the same bits on one backend, with "
            "outcomes of single samples, so there is nothing to compare."
        )
    if options.into:
        places = dict.fromkeys(map(machine_line, runs))
        embed(options.into, options.section, "\n\n".join([table, *places]))
    else:
        print(table)
    return 0
