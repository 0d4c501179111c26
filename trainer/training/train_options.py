"""The options of `trainer train` and `trainer sweep`.

An option that stands for a field of a TrainSpec has no default of its own: the schema
tells it when help is asked for. Importing this loads typer only.
"""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.console.cli_options import command_for, one_of, values_of

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
    typer.Option(
        metavar="URL",
        help="The store to train from.",
        show_default="`store:` of the file",
        rich_help_panel=DATA,
    ),
]
Spec = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A YAML file with a TrainSpec; options override it.",
        show_default="none: the options alone",
        rich_help_panel=WHAT,
    ),
]
SaeKind = Annotated[
    str | None,
    typer.Option(
        help="The kind of SAE.",
        show_default="topk; transcoder with --pairs-with, crosscoder with --aligned",
        rich_help_panel=WHAT,
        autocompletion=values_of(SCHEMA, "sae.kind"),
    ),
]
Inner = Annotated[
    str | None,
    typer.Option(
        help=(
            "The latents of a transcoder or crosscoder (which takes no gated or"
            " jumprelu); other options of the SAE are then theirs."
        ),
        show_default="topk",
        rich_help_panel=WHAT,
        autocompletion=values_of(SCHEMA, "sae.inner.kind"),
    ),
]
Expansion = Annotated[
    float | None, typer.Option(help="Dictionary size over d.", rich_help_panel=WHAT)
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Where decoder directions start: random, or rows of the data.",
        rich_help_panel=WHAT,
        autocompletion=values_of(SCHEMA, "init"),
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="For the initialisation and the order.", rich_help_panel=WHAT),
]

K = Annotated[
    int | None,
    typer.Option(help="latents per row.", rich_help_panel=SPARSITY),
]
TargetL0 = Annotated[
    float | None,
    typer.Option(
        help="Other kinds: the mean latents per row that the penalty is steered to.",
        rich_help_panel=SPARSITY,
    ),
]
L1 = Annotated[
    float | None,
    typer.Option(help="a fixed weight of the penalty.", rich_help_panel=SPARSITY),
]
L0 = Annotated[
    float | None,
    typer.Option(help="a fixed weight of the penalty.", rich_help_panel=SPARSITY),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="a fixed weight of the penalty.", rich_help_panel=SPARSITY),
]

Sites = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SITES",
        help="Names or patterns. May be given again.",
        show_default="every site",
        rich_help_panel=DATA,
    ),
]
PairsWith = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SITES",
        help=(
            "A transcoder's output sites, names or patterns: one for each of --sites,"
            " in their order."
        ),
        show_default="none",
        rich_help_panel=DATA,
    ),
]
Aligned = Annotated[
    bool,
    typer.Option(
        "--aligned",
        help="Rows of all sites of a token, for a crosscoder.",
        rich_help_panel=DATA,
    ),
]
Follow = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Train while the store is still being harvested.",
        rich_help_panel=DATA,
    ),
]
Rescale = Annotated[
    str | None,
    typer.Option(
        help="The function of a site's mean norm that its rows are divided by.",
        rich_help_panel=DATA,
        autocompletion=values_of(SCHEMA, "stream.rescale"),
    ),
]
Center = Annotated[
    bool | None,
    typer.Option(
        "--center/--no-center",
        help=(
            "Subtract each site's stored mean; by itself where the means lie far apart."
        ),
        rich_help_panel=DATA,
    ),
]
Rows = Annotated[
    str | None, typer.Option(help="Rows to train on: 500k, 20M.", rich_help_panel=DATA)
]
Batch = Annotated[
    str | None, typer.Option(help="Rows per batch.", rich_help_panel=DATA)
]
Corrupt = Annotated[
    str,
    typer.Option(
        "--on-corrupt",
        metavar="NAME",
        help="error, or skip: go on without the rows of chunks that cannot be read.",
        rich_help_panel=DATA,
        autocompletion=one_of("error", "skip"),
    ),
]

Lr = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER",
        help=(
            "Peak learning rate, or auto: by kind, dictionary size, batch and updates."
        ),
        rich_help_panel=HOW,
        autocompletion=one_of("auto"),
    ),
]
Warmup = Annotated[
    float | None,
    typer.Option(
        help="Warm-up of the learning rate, as a share of the run.", rich_help_panel=HOW
    ),
]
DeadRows = Annotated[
    str | None,
    typer.Option(
        help=(
            "A latent silent for so many rows is dead; auto: by dictionary size and"
            " rows."
        ),
        rich_help_panel=HOW,
        autocompletion=one_of("auto"),
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="bfloat16 is autocast.",
        rich_help_panel=HOW,
        autocompletion=values_of(SCHEMA, "precision"),
    ),
]

Out = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="The run's folder: a path or any fsspec URL.",
        rich_help_panel=OUTPUT,
    ),
]
OutFolder = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="The folder that gets a run folder for each SAE.",
        rich_help_panel=OUTPUT,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="What tables and reports call the run.", rich_help_panel=OUTPUT),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run that is there, bit by bit.",
        rich_help_panel=OUTPUT,
    ),
]
CheckpointEvery = Annotated[
    str | None, typer.Option(help="Steps between checkpoints.", rich_help_panel=OUTPUT)
]
CheckpointMinutes = Annotated[
    float | None,
    typer.Option(help="A checkpoint after so long, too.", rich_help_panel=OUTPUT),
]
LogEvery = Annotated[
    str | None,
    typer.Option(help="Steps between lines of the journal.", rich_help_panel=OUTPUT),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write RUN/tensorboard; the run must be local.",
        rich_help_panel=OUTPUT,
    ),
]
Wandb = Annotated[
    str | None,
    typer.Option(
        "--wandb",
        metavar="PROJECT",
        help="Also log to Weights & Biases.",
        show_default="off",
        rich_help_panel=OUTPUT,
    ),
]

Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, ...",
        rich_help_panel=RUNNING,
        autocompletion=one_of("cpu", "cuda"),
    ),
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard-dictionary",
        help="Under torchrun: split the dictionary over processes, not the batch.",
        rich_help_panel=RUNNING,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What the SAEs of one pass may take: 20GB.",
        show_default="what the device has free",
        rich_help_panel=RUNNING,
    ),
]
