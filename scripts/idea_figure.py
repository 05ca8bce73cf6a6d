"""Draws docs/figures/idea.png: what `dnrt_jax.raa` and `dnrt_jax.arr` do.

python -m scripts.idea_figure
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from dnrt_jax import arr, raa

OUT = Path(__file__).parent.parent / "docs" / "figures" / "idea.png"
COLORS = ("tab:blue", "tab:orange", "tab:green")


def activation(ax) -> None:
    """RAA(x) for several values of the shift f(x); with 0 it is GELU."""
    x = jnp.linspace(-4, 4, 400)[:, None]
    for shift, color in zip(
        (-2.0, -1.0, 0.0, 1.0, 2.0), (*COLORS, "tab:red", "tab:purple"), strict=True
    ):
        label = "0 (GELU)" if shift == 0 else f"{shift:+g}"
        width = 2.5 if shift == 0 else 1.5
        ax.plot(x[:, 0], raa(x, None, shift)[:, 0], color=color, label=label, linewidth=width)
    ax.set(title="RAA(x) = x Φ(x + f(x))", xlabel="x", xlim=(-4, 4), ylim=(-1.8, 4))
    ax.legend(title="shift f(x)", frameon=False)
    ax.grid(alpha=0.3)


def regularization(ax, steps: int = 25) -> None:
    """Responses of three classes in two dimensions under gradient descent on the ARR loss alone."""
    labels = jnp.arange(90) % 3
    centres = jnp.array([[-2.0, -1.0], [2.0, -0.8], [0.0, 2.0]])
    start = centres[labels] + 0.9 * jax.random.normal(jax.random.key(0), (90, 2))
    x, centroids = start, arr.init(start, 3)
    for _ in range(steps):
        targets, centroids = arr.update(centroids, x, labels, momentum=0.1)
        x = x - 4.0 * jax.grad(arr.loss)(x, targets)
    for k, color in enumerate(COLORS):
        before, after = start[labels == k], x[labels == k]
        ax.plot(*jnp.stack([before, after]).transpose(2, 0, 1), color=color, alpha=0.25)
        ax.scatter(*before.T, s=14, facecolors="none", edgecolors=color, alpha=0.6)
        ax.scatter(*after.T, s=14, color=color)
        ax.scatter(*centroids.mean[k], s=110, marker="X", color="black", zorder=3)
    ax.scatter([], [], s=14, facecolors="none", edgecolors="gray", label="before")
    ax.scatter([], [], s=14, color="gray", label="after")
    ax.scatter([], [], s=80, marker="X", color="black", label="class mean")
    ax.set(title="ARR: responses are pulled to their class mean", xticks=[], yticks=[])
    ax.legend(frameon=False, loc="upper left")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    activation(left)
    regularization(right)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
