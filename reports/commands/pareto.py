"""Print which cases of the runs are worth considering: accuracy against latency, size and memory.

A case is left out only where another is shown, beyond both 95 % intervals, to be better in both figures.

  python -m reports pareto run.json --model minilm
"""

import argparse

from reports.runs import RunError
from reports.storage import open_run

HELP = "print which cases are not dominated in accuracy against latency, size and memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    parser.add_argument("--model", metavar="NAME", help="only this model (all)")


def run(options: argparse.Namespace) -> int:
    from reports.pareto import front_text, fronts

    for name in options.runs:
        records = open_run(name).records
        models = sorted({record["case"]["model"] for record in records})
        if options.model and options.model not in models:
            raise RunError(f"{name} holds no case of {options.model!r}; its models are {', '.join(models)}.")
        found = fronts([record for record in records if options.model in (None, record["case"]["model"])])
        if len(options.runs) > 1:
            print(f"{name}\n")
        texts = [front_text(one) for one in found] or ["No two cases have both figures; nothing can be compared."]
        print("\n\n".join(texts))
    return 0
