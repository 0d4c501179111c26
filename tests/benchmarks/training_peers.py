"""A whole optimiser step, ours against peers' of the same kind: `python -m
tests.benchmarks.training_peers`.

d 768, 6,144 latents, batches of 4,096 rows that are in memory, float32 and bfloat16
autocast. Ours is `Learner.update` as in `training.py`; each peer's step is that of its
own trainer, in a process with the peer's own Python (`peers/`), with as many threads
and the same allocator setting. The two take turns. A line's `floor` is the peer's
rows/s and its `ratio` ours over the peer's, the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from actstore.machine.glibc_malloc import keep_freed_memory
from schemas.records import BenchRecord
from tests.benchmarks.peers.link import Peer, PeerError, connect, note
from tests.benchmarks.training import DTYPES, KINDS, candidate, seconds

# Our kinds (those that `training.KINDS` has are measured) and what the peers call them.
PAIRS: dict[str, dict[str, tuple[str, ...]]] = {
    "relu_l1": {
        "saelens": ("standard",),
        "dictionary_learning": ("standard", "standard_april"),
    },
    "topk": {
        "saelens": ("topk",),
        "dictionary_learning": ("top_k",),
        "sparsify": ("topk",),
    },
    "batch_topk": {"saelens": ("batchtopk",), "dictionary_learning": ("batch_top_k",)},
    "matryoshka": {
        "saelens": ("matryoshka_batchtopk",),
        "dictionary_learning": ("matryoshka_batch_top_k",),
    },
    "gated": {"saelens": ("gated",), "dictionary_learning": ("gated",)},
    "jumprelu": {"saelens": ("jumprelu",), "dictionary_learning": ("jumprelu",)},
}
K = 32


def measure(
    peer: Peer, kind: str, theirs: str, precision: str, options: argparse.Namespace
) -> BenchRecord | None:
    """Rows per second of our step and of the peer's, in turn; None, and a note, for a
    kind that we lack.
    """
    case = {
        "what": "step",
        "kind": theirs,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    case |= {
        "d": options.d,
        "latents": options.latents,
        "batch": options.batch,
        "k": KINDS.get(kind, {}).get("k", K),
    }
    peer.prepare(**case)
    name = f"{kind} {precision} vs {peer.name} {theirs}"
    if kind not in KINDS:
        note(
            f"{name}: peer {peer.run(options.seconds).rows_per_s:,.0f} rows/s; ours is not in training.KINDS"
        )
        return None
    step = candidate(kind, precision, options)
    step()
    step()
    pairs = []
    for _ in range(options.rounds):
        pairs.append(
            (options.batch / seconds(step), peer.run(options.seconds).rows_per_s)
        )
        note(f"{name}: ours {pairs[-1][0]:,.0f}, peer {pairs[-1][1]:,.0f} rows/s")
    value, floor = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    return BenchRecord(
        bench="training_peers",
        case=name,
        value=value,
        unit="rows/s",
        floor=floor,
        ratio=ratio,
    )


def cases(peer: str, options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(our kind, the peer's name of it, precision)."""
    kinds = options.kinds.split(",") if options.kinds else PAIRS
    wanted = [kind for kind in kinds if kind in KINDS or options.unpaired]
    return [
        (kind, other, low)
        for kind in wanted
        for other in PAIRS[kind].get(peer, ())
        for low in DTYPES
    ]


def main() -> None:
    """Print one JSON line per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=6144)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.set_defaults(device="cpu")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="at least, per turn of the peer"
    )
    parser.add_argument("--peers", default="saelens,dictionary_learning,sparsify")
    parser.add_argument("--kinds", help="ours, by comma (default: all)")
    parser.add_argument(
        "--unpaired",
        action="store_true",
        help="time the peers' kinds that ours lacks, too",
    )
    options = parser.parse_args()
    keep_freed_memory()
    for name in options.peers.split(","):
        peer = connect(name)
        if peer is None:
            continue
        with peer:
            for case in cases(name, options):
                kind, theirs, precision = case
                _report(
                    partial(measure, peer, kind, theirs, precision, options),
                    f"{name} {case}",
                )


def _report(work: Callable[[], BenchRecord | None], name: str) -> None:
    try:
        record = work()
    except PeerError as error:
        note(f"{name} is left out: {error}")
        return
    if record is not None:
        print(record.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
