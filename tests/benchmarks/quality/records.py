"""One line of results for each SAE that was trained and evaluated; a file of them is
what makes runs resumable.
"""

from __future__ import annotations

from pathlib import Path

from schemas.base import Schema


class Case(Schema):
    """What is trained. lr and penalty: None for the library's own; l0: the mean L0 that
    ours is steered to, the k of kinds that have one. recipe, normalise: what a peer's
    own examples add to its defaults (see its worker).
    """

    store: str
    library: str
    kind: str
    setting: str  # default, at_l0, grid, best
    seed: int
    rows: int
    n_latents: int
    l0: float
    lr: float | None = None
    penalty: float | None = None
    recipe: bool = False
    normalise: bool = False


class Result(Schema):
    """A case and what came of it. fvu_reset, l0_reset: with the one threshold that
    gives the wanted L0, for kinds that learn one for a batch's selection. used_lr,
    used_penalty: what the library's own were.
    """

    case: Case
    version: str
    fvu: float
    l0: float
    dead: int
    fvu_reset: float | None = None
    l0_reset: float | None = None
    mmcs: float | None = None
    mmcs_weighted: float | None = None
    f1: float | None = None
    f1_latents: float | None = None
    uniqueness: float | None = None
    used_lr: float | None = None
    used_penalty: float | None = None
    seconds: float
    date: str


class Results:
    """The results of some files; `add` appends to the first."""

    def __init__(self, path: Path, *others: Path) -> None:
        self.path = path
        self.all: list[Result] = []
        for file in (path, *others):
            if file.exists():
                lines = file.read_text().splitlines()
                self.all += [
                    Result.model_validate_json(line) for line in lines if line.strip()
                ]

    def get(self, case: Case) -> Result | None:
        """What came of the case before. A default, or a run of a grid, is that whatever
        setting it was run for.
        """
        asked = _what(case)
        return next((one for one in self.all if _what(one.case) == asked), None)

    def add(self, result: Result) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(result.model_dump_json() + "\n")
        self.all.append(result)


def _what(case: Case) -> Case:
    return case.model_copy(update={"setting": ""})
