"""What the simulated cluster is made of: every figure, and where it comes from.

`measured`: by us, the file says where. `documented`: by who runs the thing. `assumed`:
neither; a guess that a reader may replace (`--set name=value` of the command).
"""

from __future__ import annotations

from typing import NamedTuple

from actstore.harvesting.estimate import Prices


class Assumption(NamedTuple):
    """Where a figure comes from.

    Attributes:
        kind: "measured", "documented" or "assumed".
        source: By whom, where and when.
    """

    kind: str
    source: str


class Cluster(NamedTuple):
    """The figures of a harvest on a cluster; seconds, bytes, bytes per second.

    Attributes:
        tokens: Tokens of the harvest.
        layers: Sites.
        d: Width of a site.
        context: Tokens of a sequence.
        memory: `--memory`: what decides how many tokens a unit has.
        stored: Bytes that lz4 leaves of a byte of bfloat16.
        gpu_bytes: Bytes of rows that a GPU's worker makes in a second.
        forward: Tokens per second of the model alone.
        spread: Standard deviation of the logarithm of a unit's time.
        straggling: Share of the units that take longer.
        straggle: How many times as long these take.
        slow_nodes: Share of the nodes that are slower as a whole.
        slowdown: How many times as long all takes there.
        gpus_per_node: GPUs of a node.
        node: Bytes per second between a node and S3.
        connection: Bytes per second of one request.
        latency: Seconds until a small request is answered.
        puts: PUT, POST, DELETE per second and partition.
        gets: GET, HEAD per second and partition.
        split_min: Seconds after which an overloaded partition is split, at least.
        split_max: The same, at most.
        mtbf: Mean time between failures of one GPU, with all that belongs to it.
        repair: Seconds until a failed node, or another in its place, begins again.
        start: Seconds from a worker's start to its first unit (libraries, the model).
        tokenise: Tokens per second that one core tokenises.
        commit: Token blocks per second that one process commits.
        merge: Seconds to merge one unit's statistics of such sites at the end.
        gpu_price: Dollars for a GPU and hour.
    """

    tokens: float = 8e9
    layers: int = 26
    d: int = 2304
    context: int = 1024
    memory: int = 64 << 30
    stored: float = 0.72
    gpu_bytes: float = 1.956e9
    forward: float = 63_000
    spread: float = 0.10
    straggling: float = 0.02
    straggle: float = 3.0
    slow_nodes: float = 0.03
    slowdown: float = 1.3
    gpus_per_node: int = 8
    node: float = 12.5e9
    connection: float = 85e6
    latency: float = 0.1
    puts: float = 3500
    gets: float = 5500
    split_min: float = 1800
    split_max: float = 3600
    mtbf: float = 50_700 * 3600.0
    repair: float = 600
    start: float = 120
    tokenise: float = 450_000
    commit: float = 110
    merge: float = 0.006
    gpu_price: float = 2.0


_S3_LIMITS = (
    "Amazon's answers on request rates for each partitioned prefix (repost.aws, page"
    " s3-object-key-naming-pattern), looked up in November 2026"
)
_NOT_READ = (
    "as Amazon's performance guidelines are quoted; the page itself was not read for"
    " this"
)
SOURCES = {
    "tokens": Assumption("assumed", "the harvest that is asked about"),
    "layers": Assumption("assumed", "the harvest that is asked about"),
    "d": Assumption("assumed", "a model of 2.6 billion weights, as Gemma 2 2B"),
    "context": Assumption("assumed", "the harvest that is asked about"),
    "memory": Assumption(
        "assumed",
        "`--memory 64GiB`: shards of 128 MiB, and 2 GiB of them being uploaded",
    ),
    "stored": Assumption("measured", "`docs/performance.md`: 1.45 of 2 bytes"),
    "gpu_bytes": Assumption(
        "measured",
        "12 sites of GPT-2 small on one H100 with 16 cores, 106,129 tokens/s into"
        " memory (`tests/benchmarks/results/gpu_h100_202611.jsonl`)",
    ),
    "forward": Assumption(
        "assumed",
        "the measured 106,067 tokens/s of GPT-2 XL's forward, times 1.56/2.6 for the"
        " weights",
    ),
    "spread": Assumption("assumed", "units of one GPU differ by 10 %"),
    "straggling": Assumption("assumed", "one unit of 50"),
    "straggle": Assumption("assumed", "takes three times as long"),
    "slow_nodes": Assumption("assumed", "three nodes of 100"),
    "slowdown": Assumption("assumed", "are 1.3 times as slow"),
    "gpus_per_node": Assumption("assumed", "nodes as AWS p5.48xlarge"),
    "node": Assumption("assumed", f"up to 100 Gb/s from one instance, {_NOT_READ}"),
    "connection": Assumption("assumed", f"85 to 90 MB/s for each request, {_NOT_READ}"),
    "latency": Assumption("assumed", f"roughly 100 to 200 ms, {_NOT_READ}"),
    "puts": Assumption("documented", f"at least 3,500: {_S3_LIMITS}"),
    "gets": Assumption("documented", f"at least 5,500: {_S3_LIMITS}"),
    "split_min": Assumption(
        "documented",
        "30 to 60 minutes, by a reader's answer there; Amazon's own pages say"
        " `gradually`",
    ),
    "split_max": Assumption("documented", "the same"),
    "mtbf": Assumption(
        "documented",
        "419 unexpected interruptions of 16,384 GPUs in 54 days: The Llama 3 Herd of"
        " Models, arXiv 2407.21783, section 3.3.4",
    ),
    "repair": Assumption("assumed", "10 minutes"),
    "start": Assumption("assumed", "2 minutes"),
    "tokenise": Assumption(
        "measured", "one core of the tests' machine, 27 November 2026: 0.38 to 0.60 M"
    ),
    "commit": Assumption(
        "measured",
        "token ids over a line of 100 ms, with the S3 server and other programs on the"
        " same two cores (`tests/benchmarks/token_blocks.py`)",
    ),
    "merge": Assumption(
        "measured", "3.0 to 5.2 ms, quiet and busy, `tests/benchmarks/many_units.py`"
    ),
    "gpu_price": Assumption("assumed", "an H100 by the hour"),
}
PRICES = Prices()  # storage and requests; its docstring has source and date
