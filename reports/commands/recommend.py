"""Name the case to ship of each model on each backend, and what every alternative would lose or gain.

A case qualifies only where the far end of its interval is within the drop; where that is not shown it is inconclusive,
and the samples that would decide are told. A limit on latency is met only by a time that was measured: never by one
that was simulated, evaluated or refused, and never because there are fewer bits.

  python -m reports recommend main --max-drop 1pp
  python -m reports recommend run.json --max-drop 0.5pp --max-drop perplexity:1% --max-size 20MB --max-latency 10ms
  python -m reports recommend run.json --model minilm --backend onnxruntime --format json

Exit status: 0 where some case qualifies, 1 where none does, 4 for input that cannot be used.
"""

import argparse
import json

from reports.requirements import USUAL_DROPS
from reports.runs import RunError
from reports.storage import open_run

HELP = "name the case to ship of each model and backend, and what the alternatives would lose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = " ".join(USUAL_DROPS).replace("%", "%%")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a file, or the name of a save such as main or 0003")
    parser.add_argument(
        "--max-drop",
        action="append",
        metavar="DROP",
        help="the most that may be lost against float: 1pp of a share, 1%% of any metric, 0.2 in its own unit, or "
        f"perplexity:1%%, agreement:5pp; repeatable, the first that speaks of a case counts ({usual})",
    )
    parser.add_argument("--max-size", metavar="SIZE", help="the largest artefact, such as 20MB (any)")
    parser.add_argument("--max-latency", metavar="TIME", help="the longest measured call, such as 10ms (any)")
    parser.add_argument("--model", metavar="NAME", help="only this model (all)")
    parser.add_argument("--backend", metavar="NAME", help="only this backend (all)")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")


def run(options: argparse.Namespace) -> int:
    from reports.alternatives import recommendation_json, recommendation_text
    from reports.limits import LimitError
    from reports.recommendation import recommend
    from reports.requirements import parse_requirements

    try:
        requirements = parse_requirements(options.max_drop or USUAL_DROPS, options.max_size, options.max_latency)
    except LimitError as error:
        raise RunError(str(error)) from None
    found = []
    for name in options.runs:
        every = recommend(open_run(name), requirements)
        chosen = [one for one in every if _is_asked_for(one.case, options)]
        if not chosen:
            cases = ", ".join(sorted({f"{one.case['model']} on {one.case['backend']}" for one in every}))
            raise RunError(f"{name} holds no quantized case that was asked for; it holds {cases or 'none at all'}.")
        found.append((name, chosen))
    if options.format == "json":
        print(json.dumps([recommendation_json(one) for _, chosen in found for one in chosen], indent=2))
    else:
        format = "github" if options.format == "markdown" else "simple"
        texts = [(name, recommendation_text(chosen, format)) for name, chosen in found]
        print("\n\n".join(f"{name}\n\n{text}" if len(texts) > 1 else text for name, text in texts))
    return 0 if any(one.best for _, chosen in found for one in chosen) else 1


def _is_asked_for(case: dict[str, str], options: argparse.Namespace) -> bool:
    return options.model in (None, case["model"]) and options.backend in (None, case["backend"])
