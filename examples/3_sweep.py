"""Train SAEs of several kinds and sparsities from one pass over the data, and draw what
sparsity costs.
"""

from __future__ import annotations

from collections import defaultdict

import plotly.graph_objects as go

import trainer

STORE = "example/store"
RUNS = "example/sweep"
FIGURE = "example/pareto.html"


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

    figure = go.Figure()
    for kind, points in curves.items():
        l0, fvu = zip(*sorted(points), strict=True)
        figure.add_scatter(x=l0, y=fvu, name=kind, mode="lines+markers")
    figure.update_layout(xaxis_title="L0", yaxis_title="FVU on held-out rows")
    figure.write_html(FIGURE)
    print(f"the figure: {FIGURE}")


if __name__ == "__main__":
    main()
