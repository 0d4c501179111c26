"""The options of `trainer train` and `trainer sweep`.

An option that stands for a field of a TrainSpec has no default of its own: the schema
tells it when help is asked for. Importing this loads typer only.
"""

from __future__ import annotations

from typing import Annotated

from actstore.console.cli_options import (
    command_for,
    one_of,
    panel_option,
    values_of,
)

SCHEMA = "schemas.train:TrainSpec"
# The dotted path of the field that an option stands for.
FIELDS = {
    "store": "store",
    "name": "name",
    "sae": "sae.kind",
    "inner": "sae.inner.kind",
    "expansion": "sae.expansion",
    "k": "sae.k",
    "target_l0": "sae.target_l0",
    "l1": "sae.l1",
    "l0": "sae.l0",
    "alpha": "sae.alpha",
    "sites": "stream.sites",
    "pairs_with": "stream.targets",
    "follow": "stream.follow",
    "rescale": "stream.rescale",
    "center": "stream.center",
    "batch": "stream.batch",
    "rows": "rows",
    "lr": "optimiser.lr",
    "warmup": "optimiser.warmup",
    "init": "init",
    "dead_rows": "dead_rows",
    "seed": "seed",
    "precision": "precision",
    "checkpoint_every": "checkpoint_every",
    "checkpoint_minutes": "checkpoint_minutes",
    "log_every": "log_every",
    "snapshots": "snapshots",
}
# Options that some kinds of SAE have; their help is given the names of these.
OF_SOME_KINDS = ("k", "l1", "l0", "alpha")
TrainCommand = command_for(SCHEMA, FIELDS, OF_SOME_KINDS)

# The panels of the help.
WHAT = "What to train"
SPARSITY = "Sparsity"
DATA = "Data"
HOW = "Optimisation"
OUTPUT = "Output and resuming"
RUNNING = "Where and how it runs"

Store = Annotated[
    str | None,
    panel_option(
        DATA,
        metavar="URL",
        help="The store to train from.",
        show_default="`store:` of the file",
    ),
]
Spec = Annotated[
    str | None,
    panel_option(
        WHAT,
        metavar="FILE",
        help="A YAML file with a TrainSpec; options override it.",
        show_default="none: the options alone",
    ),
]
SaeKind = Annotated[
    str | None,
    panel_option(
        WHAT,
        help="The kind of SAE.",
        show_default="topk; transcoder with --pairs-with, crosscoder with --aligned",
        autocompletion=values_of(SCHEMA, FIELDS["sae"]),
    ),
]
Inner = Annotated[
    str | None,
    panel_option(
        WHAT,
        help=(
            "The latents of a transcoder or crosscoder (which takes no gated or"
            " jumprelu); other options of the SAE are then theirs."
        ),
        show_default="topk",
        autocompletion=values_of(SCHEMA, FIELDS["inner"]),
    ),
]
Expansion = Annotated[float | None, panel_option(WHAT, help="Dictionary size over d.")]
Init = Annotated[
    str | None,
    panel_option(
        WHAT,
        help="Where decoder directions start: random, or rows of the data.",
        autocompletion=values_of(SCHEMA, FIELDS["init"]),
    ),
]
Seed = Annotated[
    int | None,
    panel_option(WHAT, help="For the initialisation and the order."),
]

K = Annotated[
    int | None,
    panel_option(SPARSITY, help="latents per row."),
]
TargetL0 = Annotated[
    float | None,
    panel_option(
        SPARSITY,
        help="Other kinds: the mean latents per row that the penalty is steered to.",
    ),
]
PenaltyWeight = Annotated[
    float | None,
    panel_option(SPARSITY, help="a fixed weight of the penalty."),
]

Sites = Annotated[
    list[str] | None,
    panel_option(
        DATA,
        metavar="SITES",
        help="Names or patterns. May be given again.",
        show_default="every site",
    ),
]
PairsWith = Annotated[
    list[str] | None,
    panel_option(
        DATA,
        metavar="SITES",
        help=(
            "A transcoder's output sites, names or patterns: one for each of --sites,"
            " in their order."
        ),
        show_default="none",
    ),
]
Aligned = Annotated[
    bool,
    panel_option(
        DATA,
        "--aligned",
        help="Rows of all sites of a token, for a crosscoder.",
    ),
]
Follow = Annotated[
    bool,
    panel_option(
        DATA,
        "--follow",
        help="Train while the store is still being harvested.",
    ),
]
Rescale = Annotated[
    str | None,
    panel_option(
        DATA,
        help="The function of a site's mean norm that its rows are divided by.",
        autocompletion=values_of(SCHEMA, FIELDS["rescale"]),
    ),
]
Center = Annotated[
    bool | None,
    panel_option(
        DATA,
        "--center/--no-center",
        help=(
            "Subtract each site's stored mean; by itself where the means lie far apart."
        ),
    ),
]
Rows = Annotated[str | None, panel_option(DATA, help="Rows to train on: 500k, 20M.")]
Batch = Annotated[str | None, panel_option(DATA, help="Rows per batch.")]
Corrupt = Annotated[
    str,
    panel_option(
        DATA,
        "--on-corrupt",
        metavar="NAME",
        help="error, or skip: go on without the rows of chunks that cannot be read.",
        autocompletion=one_of("error", "skip"),
    ),
]

Lr = Annotated[
    str | None,
    panel_option(
        HOW,
        metavar="NUMBER",
        help=(
            "Peak learning rate, or auto: by kind, dictionary size, batch and updates."
        ),
        autocompletion=one_of("auto"),
    ),
]
Warmup = Annotated[
    float | None,
    panel_option(HOW, help="Warm-up of the learning rate, as a share of the run."),
]
DeadRows = Annotated[
    str | None,
    panel_option(
        HOW,
        help=(
            "A latent silent for so many rows is dead; auto: by dictionary size and"
            " rows."
        ),
        autocompletion=one_of("auto"),
    ),
]
Precision = Annotated[
    str | None,
    panel_option(
        HOW,
        help="bfloat16 is autocast.",
        autocompletion=values_of(SCHEMA, FIELDS["precision"]),
    ),
]

Out = Annotated[
    str,
    panel_option(
        OUTPUT,
        metavar="URL",
        help="The run's folder: a path or any fsspec URL.",
    ),
]
OutFolder = Annotated[
    str,
    panel_option(
        OUTPUT,
        metavar="URL",
        help="The folder that gets a run folder for each SAE.",
    ),
]
Name = Annotated[
    str | None,
    panel_option(OUTPUT, help="What tables and reports call the run."),
]
Resume = Annotated[
    bool,
    panel_option(
        OUTPUT,
        "--resume",
        help="Go on with the run that is there, bit by bit.",
    ),
]
CheckpointEvery = Annotated[
    str | None, panel_option(OUTPUT, help="Steps between checkpoints.")
]
CheckpointMinutes = Annotated[
    float | None,
    panel_option(OUTPUT, help="A checkpoint after so long, too."),
]
Snapshots = Annotated[
    int | None,
    panel_option(
        OUTPUT,
        metavar="N",
        help="SAEs to keep from training, for `eval --checkpoints`.",
    ),
]
LogEvery = Annotated[
    str | None,
    panel_option(OUTPUT, help="Steps between lines of the journal."),
]
TensorBoard = Annotated[
    bool,
    panel_option(
        OUTPUT,
        "--tensorboard",
        help="Also write RUN/tensorboard; the run must be local.",
    ),
]
Wandb = Annotated[
    str | None,
    panel_option(
        OUTPUT,
        "--wandb",
        metavar="PROJECT",
        help="Also log to Weights & Biases.",
        show_default="off",
    ),
]
Trackio = Annotated[
    str | None,
    panel_option(
        OUTPUT,
        "--trackio",
        metavar="PROJECT",
        help="Also log to trackio, in its folder of this machine.",
        show_default="off",
    ),
]
Mlflow = Annotated[
    str | None,
    panel_option(
        OUTPUT,
        "--mlflow",
        metavar="EXPERIMENT",
        help="Also log to MLflow, at $MLFLOW_TRACKING_URI.",
        show_default="off",
    ),
]

Device = Annotated[
    str,
    panel_option(
        RUNNING,
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, ...",
        autocompletion=one_of("cpu", "cuda"),
    ),
]
Shard = Annotated[
    bool,
    panel_option(
        RUNNING,
        "--shard-dictionary",
        help="Under torchrun: split the dictionary over processes, not the batch.",
    ),
]
Memory = Annotated[
    str | None,
    panel_option(
        RUNNING,
        metavar="SIZE",
        help="What the SAEs of one pass may take: 20GB.",
        show_default="what the device has free",
    ),
]
