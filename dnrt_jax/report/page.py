"""The page of a report: a table of the runs, and the figures in one HTML file."""

import base64
import html
import io
from typing import Any

from dnrt_jax.config import Config, flatten
from dnrt_jax.report.results import Results

ABOUT = {  # figure: (title, explanation)
    "curves": (
        "Curves (figure 3)",
        "Overfitting: the test cross-entropy rises while the training cross-entropy falls.",
    ),
    "training": (
        "Responses over training",
        "Of the test images, in an early, a middle and a late layer: the size of the aggregated "
        "responses, their spread within classes relative to that between, which no scale changes, "
        "and how many of them are nearest to the mean of their own class.",
    ),
    "spread": (
        "Spread of responses by layer",
        "Root mean square distance of the aggregated responses from their class mean, "
        "and of the class means from each other. ARR pulls responses to their class mean; since a "
        "normalisation follows, it can also just shrink all responses: see the ratio.",
    ),
    "shifts": (
        "Shifts of RAA by layer",
        "The learned shift w.x + b over tokens or pixels. With zero shift RAA is GELU.",
    ),
    "activated": (
        "Responses after the activation (figure 2a)",
        "Outputs of the activation in MLPs, the first 50 channels of the class token, over test "
        "images. Each run has its own scale.",
    ),
    "aggregated": (
        "Aggregated responses by class (figure 2b)",
        "The last layer's aggregated response to images of three classes, the first 50 channels. "
        "Each run has its own scale.",
    ),
    "per_class": ("Accuracy by class", "At the last evaluation."),
    "confusion": (
        "Confusion",
        "Rows are true classes, columns predicted ones, in percent of the row.",
    ),
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd;
  text-align: left; vertical-align: top } td.number, th.number { text-align: right }
img { max-width: 100%; height: auto } p { max-width: 48em; color: #444 }
"""


def page(table: str, drawn: dict[str, Any]) -> str:
    parts = []
    for name, figure in drawn.items():
        title, about = ABOUT[name.rstrip("_0123456789")]
        source = base64.b64encode(image(figure, "png")).decode()
        parts.append(
            f"<h2>{title}</h2><p>{html.escape(about)}</p>"
            f'<img alt="{title}" src="data:image/png;base64,{source}">'
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Runs compared</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style><h1>Runs compared</h1>'
        f"{table}{''.join(parts)}</html>\n"
    )


def image(figure: Any, kind: str) -> bytes:
    """A figure as the bytes of a file, "png" or "svg"."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def table(configs: dict[str, list[Config]], results: dict[str, Results]) -> str:
    """An HTML table of the runs: config fields that differ, and results.

    configs: of each run, or of those of a set, which share a row.
    """
    values = {name: _values(of_runs) for name, of_runs in configs.items()}
    fields = sorted({field for row in values.values() for field in row})
    differ = [f for f in fields if len({str(row.get(f)) for row in values.values()}) > 1]
    head = "".join(f"<th>{html.escape(x)}</th>" for x in ("run", "differs in"))
    head += "".join(
        f"<th class=number>{x}</th>"
        for x in ("test accuracy, last", "best", "at step", "test cross-entropy", "steps")
    )
    lines = []
    for name, row in values.items():
        last, best, best_steps, steps = results[name]
        settings = ", ".join(f"{field}={row.get(field)}" for field in differ) or "nothing"
        numbers = (_spread(last, "test/acc", ".2%"), _spread(best, "test/acc", ".2%"))
        numbers += (_range(best_steps), _spread(last, "test/loss_ce", ".3f"), _range(steps))
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in (name, settings))
        cells += "".join(f"<td class=number>{number}</td>" for number in numbers)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _values(configs: list[Config]) -> dict[str, str]:
    """The fields of a row; those in which its runs differ, as the seed, have the values of all."""
    flat = [flatten(config) for config in configs]
    return {field: ",".join(dict.fromkeys(str(c.get(field)) for c in flat)) for field in flat[0]}


def _range(steps: list[int]) -> str:
    low, high = min(steps), max(steps)
    return str(low) if low == high else f"{low} to {high}"


def _spread(record: dict[str, Any], key: str, how: str) -> str:
    deviation = record.get(f"deviation/{key}")
    return format(record[key], how) + (f" ± {deviation:{how}}" if deviation else "")
