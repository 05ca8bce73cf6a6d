"""The curves of a run: losses and accuracy by epoch."""

from pathlib import Path
from typing import Any

PANELS = {"Loss": ("loss_ce", "loss_arr"), "Accuracy": ("acc",)}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draws losses and accuracy by epoch, training dashed and test solid, into an image file."""
    from matplotlib.figure import Figure  # half a second, which no start of a run should wait for

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for i, name in enumerate(names):
            for side, style in (("train", "--"), ("test", "-")):
                points = [
                    (r["epoch"], r[f"{side}/{name}"]) for r in records if f"{side}/{name}" in r
                ]
                if points:
                    line = axes.plot(*zip(*points, strict=True), style, marker=".")[0]
                    line.set(color=f"C{i}", label=f"{side} {name}")
        axes.set(title=title, xlabel="Epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
