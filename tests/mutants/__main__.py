"""Is the proof a proof? Planted faults in the numerics, each of which a named test must notice.

python -m tests.mutants                 # all of them; what an unchanged tree has killed already is not tried again
python -m tests.mutants quant/tensor    # those whose line has this text in it
"""

import argparse
import os
import sys
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.trials import Known, Trial, try_all

ROOT = Path(__file__).parents[2]
_SHOWN_LINES = 15


def main(arguments: list[str] | None = None) -> int:
    """Try mutants; returns 0 where every one is killed, 1 where one is not, 4 where none is meant or tests fail."""
    options = _options(arguments)
    chosen = [mutant for mutant in MUTANTS if options.text in mutant.name]
    if not chosen:
        print(f"no mutant has {options.text!r} in its line: leave it out to try all {len(MUTANTS)}.", file=sys.stderr)
        return 4
    trials: list[Trial] = []
    try:
        for trial in try_all(ROOT, chosen, options.workers, Known(ROOT, ROOT / "build" / "mutants.json")):
            trials.append(trial)
            count = f"{len(trials):{len(str(len(chosen)))}}/{len(chosen)}"
            print(f"{count}  {trial.outcome:8}  {trial.seconds:5.1f} s  {trial.mutant.name}", flush=True)
            if trial.outcome in ("stale", "broken"):
                print("\n".join(f"    {line}" for line in trial.output.splitlines()[-_SHOWN_LINES:]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 4
    killed = sum(trial.outcome == "killed" for trial in trials)
    print(f"{killed} of {len(trials)} mutants killed.")
    return 0 if killed == len(trials) else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__, formatter_class=formatter)
    parser.add_argument("text", nargs="?", default="", help="try only mutants with this text in their line")
    cores = os.cpu_count() or 1
    parser.add_argument("-j", "--workers", type=int, default=cores, metavar="N", help=f"at once (default: {cores})")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
