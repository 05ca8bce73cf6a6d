"""The rows of the paper's tables: data set, model, activation with or without ARR, the paper's
number, and the config that trains it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dnrt_jax.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAPER: dict[str, Any] = json.loads((ROOT / "results" / "paper" / "tables.json").read_text())
CASES = {"dnrt": "raa+arr"}  # other names, from the paper
VITS = {  # names at 32 and at 224 pixels
    "vit_tiny": ("vit_tiny_patch4_32", "vit_tiny_patch16_224"),
    "deit_tiny": ("deit_tiny_patch4_32", "deit_tiny_patch16_224"),
    "cait_xxs": ("cait_xxs24_patch4_32", "cait_xxs24_224"),
    "pvt_tiny": ("pvt_tiny_32", "pvt_tiny"),
    "tnt_small": ("tnt_s_patch4_32", "tnt_s_patch16_224"),
}
CNNS = {
    "alexnet": ("cifar_alexnet", "alexnet"),
    "vgg11": ("cifar_vgg11_bn", "vgg11_bn"),
    "resnet18": ("cifar_resnet18", "resnet18"),
    "mobilenet": ("cifar_mobilenet", "mobilenet_v1"),
    "shufflenet": ("cifar_shufflenet", "shufflenet_v1"),
}
TINY = {"model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "train.epochs": 2}
TINY |= {"train.batch_size": 128, "train.eval_epochs": 1.0, "optim.warmup_epochs": 0.5}


class Row(NamedTuple):
    """A row of a table: data set, model and case, as raa+arr; `paper` is the paper's result."""

    dataset: str
    model: str
    case: str
    paper: float | None
    config: str  # a file, such as configs/cifar10.py
    fields: dict[str, Any]  # overrides of the config

    def overrides(self) -> dict[str, Any]:
        """The overridden config fields, by dotted name."""
        act, _, regularized = self.case.partition("+")
        fields = {"model.act": act} | ({} if regularized else {"arr.weight": 0})
        return self.fields | fields


def rows_of(table: str, scale: str) -> list[Row]:
    """All rows of a table.

    Raises:
      ConfigError: if the table does not have that scale.
    """
    rows = list(_table5() if table == "table5" else _images(table))
    if scale == "full":
        return rows
    if table == "table5":
        raise ConfigError(f"{table}: has no --scale={scale}")
    cases = dict.fromkeys(row.case for row in rows)
    return [Row("digits", "vit", case, None, "configs/digits.py", TINY) for case in cases]


def _ours(case: str) -> str:
    return CASES.get(case, case)


def _images(table: str) -> Iterator[Row]:
    """Tables 1, 2, 3 and 6."""
    numbers: list[tuple[str, str, str, float]]
    if table == "table6":
        block = PAPER["table6_ablation_cifar100"]
        numbers = [
            ("cifar100", model, case, number)
            for model in ("vit_tiny", "resnet18")
            for case, number in zip(block["columns"], block[model], strict=True)
        ]
    elif table == "table3":
        block = PAPER["table3_imagenet1k"]
        numbers = [
            ("imagenet1k", m, case, number) for case in block for m, number in block[case].items()
        ]
    else:
        activations: list[str] = list(PAPER["activations"])
        numbers = [
            (dataset, model, case, number)
            for dataset, block in PAPER[table].items()
            for model, values in block.items()
            for case, number in zip(activations, values, strict=True)
        ]
    for dataset, model, named, number in numbers:
        small = dataset.startswith("cifar")
        name = (VITS | CNNS)[model][0 if small else 1]
        protocol = "_cnn" if model in CNNS else ""
        config = f"configs/{dataset}{protocol}.py"
        if not small:
            config = f"configs/imagenet{protocol}.py:{dataset}"
        yield Row(dataset, model, _ours(named), number, config, {"model.name": name})


def _table5() -> Iterator[Row]:
    for case, numbers in PAPER["table5_dgraph_auc"].items():
        for model, number in numbers.items():
            yield Row("dgraph", model, _ours(case), number, f"configs/dgraph.py:{model}", {})
    block = PAPER["table5_longtail_cifar10"]
    names = {"vit_tiny": "vit_tiny_patch4_32", "resnet32": "cifar_resnet32"}
    for i, beta in enumerate(block["beta"]):
        for case in ("relu", "gelu", "dnrt"):
            for model, name in names.items():
                number, fields = block[case][model][i], {"data.imbalance": beta}
                config, dataset = f"configs/cifar10_lt.py:{name}", f"cifar10_lt{beta}"
                yield Row(dataset, model, _ours(case), number, config, fields)
