"""Models by name: those of this package, and one from elsewhere."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import pytest

from dnrt_jax import models
from dnrt_jax.runtime.errors import ModelError, UserError

HERE = f"{__name__}:Linear"
NO_MODEL, NO_ACTIVATION = object(), nn.Dense


class Linear(nn.Module):
    """A model that is in no table of the package."""

    num_classes: int
    act: str = "raa"
    image_size: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def test_one_table_holds_the_models_of_images_and_of_graphs():
    assert {"vit_tiny_patch4_32", "resnet18", "mlp", "gcn", "graphsage"} <= models.registry().keys()
    graphs = {name for name in models.registry() if "image_size" not in models.fields(name)}
    assert graphs == {"gcn", "graphsage"}


@pytest.mark.parametrize("name", models.registry())
def test_every_model_takes_classes_and_an_activation_first(name):
    fields = models.fields(name)
    assert list(fields)[:2] == ["num_classes", "act"]
    assert not {"parent", "name"} & fields.keys()


def test_the_fields_of_a_model_come_with_their_types():
    fields = models.fields("vit_tiny_patch4_32")
    assert fields["num_heads"] is int
    assert fields["init_values"] == float | None
    assert fields["global_pool"] == Literal["token", "avg"]
    assert fields["dtype"] is Any
    assert models.fields("pvt_tiny")["depths"] == tuple[int, ...]


def test_a_model_from_elsewhere_is_named_by_its_module_and_class():
    model = models.create(HERE, num_classes=3, act="gelu", image_size=5)
    assert model == Linear(num_classes=3, act="gelu", image_size=5)
    assert models.fields(HERE) == {"num_classes": int, "act": str, "image_size": int}
    table = models.create("dnrt_jax.models.vit:ViT", num_classes=3, dtype=jnp.bfloat16)
    assert table == models.create("vit_tiny_patch16_224", num_classes=3, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "vit_tiny_patch4_23",
            {},
            "unknown model 'vit_tiny_patch4_23'; did you mean 'vit_tiny_pat",
        ),
        ("qqq", {}, "unknown model 'qqq'; known: alexnet, "),
        ("mlp", {"act": "geluu"}, "unknown activation 'geluu'; did you mean 'gelu'"),
        ("mlp", {"act": "GELU"}, "unknown activation 'GELU'; did you mean 'gelu'"),
        ("mlp", {"act": nn.gelu}, ": give an activation by name, as act='gelu'"),
        ("mlp", {"dept": 3}, "unknown keyword of model mlp: 'dept'; did you mean 'depth'"),
        (
            "vit_tiny_patch4_32",
            {"formulation": "rocm"},
            "formulation='rocm': choose one of cpu, gpu, tpu, tpu5",
        ),
        (HERE, {"image_siz": 3}, "'image_siz'; did you mean 'image_size'"),
        ("no_such_package.vit:ViT", {}, "no module 'no_such_package'"),
        ("dnrt_jax.models.vitt:ViT", {}, "no module 'dnrt_jax.models.vitt'"),
        ("dnrt_jax.models.vit:Vit", {}, "unknown 'Vit'; did you mean 'ViT'"),
        (f"{__name__}:QQQ", {}, "unknown 'QQQ'; known: Linear, NO_ACTIVATION"),
        ("dnrt_jax.models.vit:", {}, "write it as package.module:Class"),
        (":ViT", {}, "write it as package.module:Class"),
        (f"{__name__}:NO_MODEL", {}, "NO_MODEL is no flax.linen.Module"),
        (f"{__name__}:NO_ACTIVATION", {}, "needs the fields num_classes and act"),
    ],
)
def test_a_mistake_is_answered_in_one_line(name, kwargs, message):
    with pytest.raises(ModelError) as caught:
        models.create(name, num_classes=3, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_to_import_something_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "broken_model.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        models.create("broken_model:Net", num_classes=3)
    assert not isinstance(caught.value, UserError)
