"""Put the files of shards, or of a run and its resumption, together as one run.

  pytest benchmarks --shard 1/2 --benchmark-json=one.json
  pytest benchmarks --shard 2/2 --benchmark-json=two.json
  python -m reports merge one.json two.json -o run.json

Exit status: 0, or 4 for parts that do not belong together.
"""

import argparse
import json
import sys
from pathlib import Path

from reports.files import write

HELP = "put the files of shards, or of a run and its resumption, together as one run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")


def run(options: argparse.Namespace) -> int:
    from reports.merge import merge, read_part

    document = merge([read_part(path) for path in options.runs])
    write(options.output, json.dumps(document, indent=4))
    quant = document["quant"]
    print(f"{options.output}: {len(document['benchmarks'])} of {len(quant['planned'])} planned cases")
    if quant.get("missing_shards"):
        numbers = ", ".join(map(str, quant["missing_shards"]))
        print(f"Shards {numbers} are missing, so the run is not complete and serves no comparison.", file=sys.stderr)
    elif not quant["complete"]:
        print("Some planned cases did not run, so the run is not complete and serves no comparison.", file=sys.stderr)
    return 0
