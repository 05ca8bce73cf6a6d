"""The README.md of a repository of weights: how to use them, results, config, citation."""

import json
from typing import Any

from dnrt_jax.runtime.storage import AnyPath
from dnrt_jax.runtime.weight_files import Description

METRICS = {"acc": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1"}  # the hub's
CITATION = """\
@inproceedings{qiu2024dnrt,
  title     = {Dynamic Neural Response Tuning},
  author    = {Qiu, Tian and Xu, Wenxiang and Chen, Lin and Zhou, Linyun and Feng, Zunlei and Song, Mingli},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}"""  # noqa: E501
CARD = """\
---
{head}
---

# {title}

{model}, {num_classes} classes, images of {image_size} pixels, with the activation `{act}`.

```
pip install "dnrt_jax[train,hub]"
python -m dnrt_jax.predict --weights={name} IMAGE...
```

Start a training from these weights with `--config.init_from={name}`.
{results}
## Preprocessing

The shorter side is resized to {resize} pixels, the centre of {image_size} pixels is cut out, and
pixels in 0 .. 1 are normalised with mean {mean} and standard deviation {std}.
{config}
## Citation

```
{citation}
```
"""


def text(name: str, description: Description, run: "AnyPath | None", checkpoint: str) -> str:
    """The card of the weights `name`, hf:USER/NAME.

    Args:
      run: the folder of the run that they come from, if known, for its results and its config.
      checkpoint: of that run: "latest", "best" or a step.

    Raises:
      UserError: if files of the run are missing or damaged.
    """
    head: dict[str, Any] = {"library_name": "dnrt_jax", "pipeline_tag": "image-classification"}
    head["tags"] = ["dnrt", "jax", "flax", "safetensors", "image-classification"]
    results = config = ""
    title = name.partition("/")[2].partition("@")[0]
    if run:
        from dnrt_jax.config import to_json
        from dnrt_jax.runtime.workdir import read_config

        used = read_config(run)
        if record := _evaluated(run, checkpoint):
            values = {k.removeprefix("test/"): v for k, v in record.items() if k in _tests(record)}
            results = _table(used.data.name, record["step"], values)
            head["model-index"] = [_index(title, used.data.name, values)]
        config = f"\n## Config of the training\n\n```json\n{to_json(used)}\n```\n"
    model = description.model
    return CARD.format(
        head="\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()),  # also YAML
        title=title,
        name=name,
        model=model["name"],
        num_classes=model["num_classes"],
        image_size=model["image_size"],
        act=model["act"],
        results=results,
        resize=description.eval_resize,
        mean=_numbers(description.mean),
        std=_numbers(description.std),
        config=config,
        citation=CITATION,
    )


def _tests(record: dict[str, Any]) -> list[str]:
    return [k for k, v in record.items() if k.startswith("test/") and isinstance(v, float)]


def _evaluated(run: AnyPath, checkpoint: str) -> dict[str, Any] | None:
    """The last record of an evaluation, at the step of the checkpoint if that is not the latest."""
    from dnrt_jax.runtime.workdir import find_step, read_records

    step = find_step(run, checkpoint)
    records = [r for r in read_records(run) if _tests(r) and step in (None, r["step"])]
    return records[-1] if records else None


def _table(data: str, step: int, values: dict[str, float]) -> str:
    rows = "".join(f"| {metric} | {value:.4f} |\n" for metric, value in values.items())
    return (
        f"\n## Results\n\nOn the test split of {data}, at step {step}:\n\n"
        f"| metric | value |\n|---|---|\n{rows}"
    )


def _index(title: str, data: str, values: dict[str, float]) -> dict[str, Any]:
    """The results in the form in which the hub reads them."""
    metrics = [{"type": METRICS[k], "value": v} for k, v in values.items() if k in METRICS]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": data, "name": data, "split": "test"},
        "metrics": metrics,
    }
    return {"name": title, "results": [result]}


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
