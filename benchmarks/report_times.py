"""How long the reports take on a large run: real records, repeated under other names until there are a thousand.

    pytest benchmarks --benchmark-json=run.json
    python -m benchmarks.report_times run.json

The second of the two runs that are compared answers differently on a few samples of every case, so that nothing is
found equal without looking. Each command runs in a process of its own, as a user starts it.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

from reports.record import Record, pack_outcomes, unpack_outcomes
from reports.runs import read_document, run_of

RECORDS = 1_000
FLIPPED = 0.02
"""The share of samples whose answers and errors differ between the two runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a saved run to take records from")
    parser.add_argument("--records", type=int, default=RECORDS, metavar="N", help=f"of each run (default: {RECORDS:,})")
    options = parser.parse_args()
    document = read_document(options.run)
    records = run_of(options.run, document).records
    with tempfile.TemporaryDirectory() as folder:
        base, head = (Path(folder) / name for name in ("base.json", "head.json"))
        random = numpy.random.default_rng(0)
        base.write_text(json.dumps(_enlarged(document, records, options.records)))
        head.write_text(json.dumps(_enlarged(document, records, options.records, random)))
        print(f"{options.records:,} records from {options.run}, {base.stat().st_size / 1e6:.0f} MB a run")
        page = Path(folder) / "report.html"
        for arguments in (["table", base], ["compare", base, head], ["html", base, "-o", page]):
            print(f"{arguments[0]:<8}{_seconds(arguments):.2f} s")
        print(f"the page takes {page.stat().st_size / 1e6:.1f} MB")


def _enlarged(
    document: dict, records: list[Record], count: int, random: numpy.random.Generator | None = None
) -> dict[str, object]:
    """Return a run of ``count`` records; where ``random`` is given, a few samples of each are answered otherwise."""
    benchmarks = []
    for index in range(count):
        record = copy.deepcopy(records[index % len(records)])
        record["case"]["model"] += f"_{index // len(records)}"
        if random is not None:
            record["scores"] = _answered_otherwise(record["scores"], random)
        benchmarks.append({**document["benchmarks"][0], "extra_info": {"quant": record}})
    return {**document, "quant": {}, "benchmarks": benchmarks}


def _answered_otherwise(scores: Record, random: numpy.random.Generator) -> Record:
    changed = {**scores, "outputs_sha256": "0" * 64}
    n = scores["n"]
    for key, count in (("packed", n), ("agreement", scores["n_fidelity"]), ("squared_error", scores["n_fidelity"])):
        if not scores.get(key):
            continue
        values = unpack_outcomes(scores[key], count).copy()
        at = random.choice(count, max(1, int(FLIPPED * count)), replace=False)
        values[at] = ~values[at] if values.dtype == bool else 1.1 * values[at]
        changed[key] = pack_outcomes(values)
    return changed


def _seconds(arguments: list[object]) -> float:
    """Return the seconds that a command of the reports takes from its start to its end."""
    command = [sys.executable, "-m", "reports", *map(str, arguments)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}.")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
