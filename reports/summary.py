"""What a run is summed up in: a table for each kind of record in it, and the advice that follows from its cases."""

from collections.abc import Sequence
from typing import Literal

from reports.costs import cost_table, peer_table
from reports.generation import generation_table
from reports.record import Record
from reports.tables import table


def summary(records: Sequence[Record], verbose: bool = False, format: Literal["simple", "github"] = "simple") -> str:
    """The tables of valid records, the cases' own first, separated by empty lines."""
    from reports.advice import advise  # imports numpy, before which threads must be pinned

    costs, peers = ([record for record in records if record["kind"] == kind] for kind in ("quantize", "peer"))
    generated = [record for record in records if record["kind"] == "generate"]
    others = [record for record in records if record["kind"] not in ("generate", "quantize", "peer")]
    parts = [table(others, verbose, format), advise(others)] if others or not records else []
    parts += [generation_table(generated, format)] if generated else []
    parts += [cost_table(costs, format)] if costs else []
    parts += [peer_table(peers, format)] if peers else []
    return "\n\n".join(parts)
