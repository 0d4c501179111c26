"""The training service, as it speaks: what is submitted, and what is told of it.

A *run* is one SAE. A *pass* is a group of runs that are trained together, from one
reading of the data, on one *slot*: a GPU, or a part of the machine's cores.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.base import Count, Schema
from schemas.catalog import Time
from schemas.train import ONE_LINE, TrainSpec

RunState = Literal["queued", "running", "completed", "failed", "cancelled"]
ENDED: tuple[RunState, ...] = ("completed", "failed", "cancelled")
Role = Literal["reader", "submitter", "admin"]
EventKind = Literal[
    "queued", "started", "progress", "completed", "failed", "cancelled", "lost"
]
MOST_PRIORITY = 100


class JournalSinks(Schema):
    """Where the records of a run's journal go besides the journal."""

    tensorboard: bool = Field(
        default=False, description="whether they go to RUN/tensorboard"
    )
    wandb: str | None = Field(default=None, description="a project of Weights & Biases")
    trackio: str | None = Field(default=None, description="a project of trackio")
    mlflow: str | None = Field(default=None, description="an experiment of MLflow")


NO_SINKS = JournalSinks()


class PassSpec(Schema):
    """Runs that share a pass, as they are given to the process that trains them."""

    runs: dict[str, TrainSpec] = Field(
        min_length=1, description="the specs, by the URL of the run's folder"
    )
    store: str = Field(description="URL at which the store of all of them lies")
    device: str = Field(default="cpu", description="where they are trained")
    on_corrupt: Literal["error", "skip"] = Field(
        default="error", description="what is done about rows that cannot be read"
    )
    sinks: JournalSinks = Field(
        default=NO_SINKS, description="where their records go, too"
    )


class Submission(Schema):
    """What a user asks the service to train."""

    spec: dict[str, Any] = Field(description="a TrainSpec, or a SweepSpec with `base`")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        pattern=ONE_LINE,
        description="name of the run's folder, or of the sweep's; None: the service's",
    )
    priority: int = Field(
        default=0,
        ge=-MOST_PRIORITY,
        le=MOST_PRIORITY,
        description="runs of a higher one come first",
    )
    dry_run: bool = Field(
        default=False, description="answer with the estimate, and submit nothing"
    )


class Estimate(Schema):
    """What training is expected to take, told before anything begins."""

    runs: list[str] = Field(description="names of the runs")
    rows: Count = Field(description="rows that each run trains on")
    passes: int = Field(description="how often the data is read, if it began now")
    memory_bytes: int = Field(description="of the largest pass")
    fits: bool = Field(description="whether the largest pass fits on a slot")
    seconds: float | None = Field(
        description="training time; null where nothing like it was trained yet"
    )


class RunProgress(Schema):
    """How far a run has come, by the last line of its journal."""

    step: int = Field(description="steps so far")
    steps: int | None = Field(description="steps in all; null while not known")
    rows: int = Field(description="rows trained on so far")
    rows_per_s: float = Field(description="rows trained on per second")
    stall: float = Field(description="share of the time spent waiting for rows")
    loss: float = Field(description="the whole loss")
    l0: float = Field(description="latents that fired in a row")
    fvu: float = Field(description="fraction of variance unexplained")


class ServiceRun(Schema):
    """A run of the service."""

    id: str = Field(description="told by the service")
    name: str = Field(description="name of its folder, below the service's")
    url: str = Field(description="its folder")
    sweep: str | None = Field(description="the sweep that it was submitted with")
    user: str = Field(description="who submitted it")
    state: RunState = Field(description="where it is")
    priority: int = Field(description="runs of a higher one come first")
    created: Time = Field(description="when it was submitted")
    started: Time | None = Field(description="when it first began")
    ended: Time | None = Field(description="when it ended")
    attempts: int = Field(description="how often it was begun or went on")
    slot: str | None = Field(description="where it is trained, while it is")
    shares_with: list[str] = Field(description="ids of the runs of the same pass")
    waits_for: str | None = Field(description="why it does not begin yet, in words")
    error: str | None = Field(description="why it failed, in words")
    published: str | None = Field(description="its name in the catalog")
    spec: TrainSpec = Field(description="what is trained")
    memory_bytes: int = Field(description="what it takes if it is trained alone")
    progress: RunProgress | None = Field(description="null before its first steps")


class RunPage(Schema):
    """Some of the runs, newest first."""

    runs: list[ServiceRun] = Field(description="the runs")
    total: int = Field(description="how many fit the filter")
    next: str | None = Field(description="give it as `after` for the next page")


class RunEvent(Schema):
    """Something that happened to a run."""

    id: int = Field(description="rises from one event to the next, of all runs")
    run: str = Field(description="id of the run")
    time: Time = Field(description="when")
    kind: EventKind = Field(description="what")
    text: str = Field(description="what, in words")
    progress: RunProgress | None = Field(
        default=None, description="of events of this kind"
    )


class SlotState(Schema):
    """A place where one pass at a time is trained."""

    name: str = Field(description="`cuda:0`, `cpu-1`")
    device: str = Field(description="the device, as a pass is given it")
    memory_bytes: int = Field(description="what a pass may take of it")
    runs: list[str] = Field(description="ids of the runs that are trained there now")


class ServiceState(Schema):
    """The service as a whole."""

    version: str = Field(description="of actstore")
    runs_url: str = Field(description="the folder of all runs")
    slots: list[SlotState] = Field(description="where passes are trained")
    counts: dict[RunState, int] = Field(description="number of runs in each state")


class ServiceStore(Schema):
    """A store that the service may train from."""

    name: str | None = Field(description="its name in the catalog, if it has one")
    url: str = Field(description="give it as `store` of a spec")
    sites: list[str] = Field(description="names of its sites")
    rows: int = Field(description="rows at each site")
    d: int = Field(description="width of a row; 0 where sites differ")
    model: str = Field(description="the language model")
    bytes: int = Field(description="size of its values")


class RunCurves(Schema):
    """A run's journal as the page draws it: at most some hundred points."""

    run: str = Field(description="id of the run")
    name: str = Field(description="its name")
    state: RunState = Field(description="where it is")
    whole: bool = Field(description="whether it takes the place of what is drawn")
    last_step: int = Field(description="step of the journal's last line; -1: no line")
    rows: list[int] = Field(description="rows trained on, at each point")
    columns: dict[str, list[float | None]] = Field(
        description="values at each point, by the names of a line of the journal"
    )


class TokenInfo(Schema):
    """A token, without its secret."""

    id: str = Field(description="names it, for `trainer token revoke`")
    user: str = Field(description="whose it is")
    role: Role = Field(description="what it allows")
    created: Time = Field(description="when it was made")
    expires: Time | None = Field(description="until when it counts; null: for ever")
    revoked: bool = Field(description="whether it counts no longer")


class TokenRecord(TokenInfo):
    """`STATE/tokens/ID.json`: a token, with the digest of its secret."""

    user: str = Field(
        min_length=1, max_length=100, pattern=ONE_LINE, description="whose it is"
    )
    revoked: bool = Field(default=False, description="whether it counts no longer")
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$", description="digest of the secret, in hexadecimal"
    )

    def info(self) -> TokenInfo:
        """Return it without the digest."""
        return TokenInfo.model_validate(self.model_dump(exclude={"sha256"}))


class Login(Schema):
    """What the page sends to begin a session."""

    token: str = Field(max_length=200, description="the user's token")


class SessionInfo(Schema):
    """Who is logged in on a page."""

    user: str = Field(description="the user's name")
    role: Role = Field(description="what the user may do")
    csrf_token: str | None = Field(
        description=(
            "the page sends it as `X-CSRF-Token` with what changes something; null:"
            " by a token, which needs none"
        )
    )


class Publication(Schema):
    """The name under which a run is to be published."""

    name: str = Field(
        min_length=1,
        max_length=201,
        pattern=ONE_LINE,
        description="its name in the catalog, and after a colon a tag",
    )


class Artifact(Schema):
    """A file of a run's folder."""

    key: str = Field(description="its path in the run's folder")
    bytes: int = Field(description="its size")
    content_type: str = Field(description="as it is served")


class SiteNorms(Schema):
    """L2 norms of the training rows of a site."""

    site: str = Field(description="name of the site")
    layer: str = Field(description="its short name")
    mean: float = Field(description="mean norm")
    low: float = Field(description="5 % quantile")
    median: float = Field(description="median norm")
    high: float = Field(description="95 % quantile")
    max: float = Field(description="largest norm")


class Problem(Schema):
    """Why a request was not answered as it was meant."""

    detail: str = Field(description="in words: what was wanted, and what to do")


class Health(Schema):
    """Whether the service works."""

    status: Literal["ok", "not ready"] = Field(description="in a word")
    detail: str = Field(default="", description="why not, in words")


class ServicePlaces(Schema):
    """`STATE/places.json`: where the stores of a service may lie."""

    stores: tuple[str, ...] = Field(
        description="real paths and URLs at and below which stores may be read"
    )
