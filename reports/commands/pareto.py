"""Print which cases of the runs are worth considering: accuracy against latency, size and memory.

A case is left out only where another is shown, beyond both 95 % intervals, to be better in both figures.
"""

import argparse
from pathlib import Path

from reports.runs import RunError, read_valid_run

HELP = "print which cases are not dominated in accuracy against latency, size and memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--model", metavar="NAME", help="only this model (all)")


def run(options: argparse.Namespace) -> int:
    from reports.pareto import front_text, fronts

    for path in options.runs:
        records = read_valid_run(path).records
        models = sorted({record["case"]["model"] for record in records})
        if options.model and options.model not in models:
            raise RunError(f"{path} holds no case of {options.model!r}; its models are {', '.join(models)}.")
        found = fronts([record for record in records if options.model in (None, record["case"]["model"])])
        if len(options.runs) > 1:
            print(f"{path}\n")
        texts = [front_text(one) for one in found] or ["No two cases have both figures; nothing can be compared."]
        print("\n\n".join(texts))
    return 0
