"""Print the models exported below a folder with what was found of each, or write the table into a document.

  python -m benchmarks export minilm-gptq-int4 reviews_gpt-rtn-int8_sym -o build/exports
  python -m reports exports build/exports --into docs/export.md

Exit status: 0, or 4 for input that cannot be used.
"""

import argparse
from pathlib import Path

HELP = "print exported models, their sizes and what was found of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="that cases were exported into")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it into FILE between the markers of --section")
    parser.add_argument(
        "--section", default="exports", help="<!-- begin SECTION --> and <!-- end SECTION --> (exports)"
    )


def run(options: argparse.Namespace) -> int:
    from reports.embed import embed
    from reports.exports import exports_table, read_exports

    text = exports_table(read_exports(options.folder), "github" if options.into else "simple")
    if options.into:
        embed(options.into, options.section, text)
    else:
        print(text)
    return 0
