"""Train SAEs of several kinds and sparsities from one pass over the data, and draw what
sparsity costs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import trainer
from actstore.figures.draw_svg import draw
from actstore.figures.figure import Axis, Figure, Series

STORE = "example/store"
RUNS = "example/sweep"
FIGURE = "example/pareto.svg"


def main() -> None:
    runs = [
        {"sae.kind": kind, "sae.k": k}
        for kind in ("topk", "batch_topk")
        for k in (8, 16, 32)
    ]
    spec = {"base": {"store": STORE, "rows": "100k"}, "runs": runs}
    folders = trainer.sweep(spec, RUNS)  # the folder of each run, by its name

    # One curve for each kind: the error that is left, against active latents.
    curves = defaultdict(list)
    for name, folder in folders.items():
        pooled = trainer.evaluate(folder).pooled
        print(f"{name}: L0 {pooled.l0:.1f}, FVU {pooled.fvu:.3f}")
        curves[trainer.load(folder).record.sae.kind].append((pooled.l0, pooled.fvu))

    series = []
    for kind, points in curves.items():
        l0, fvu = zip(*sorted(points), strict=True)
        series.append(Series(kind, l0, fvu))
    axes = (Axis("L0"), Axis("FVU on held-out rows"))
    Path(FIGURE).write_text(draw(Figure("pareto", *axes, tuple(series))))
    print(f"the figure: {FIGURE}")


if __name__ == "__main__":
    main()
