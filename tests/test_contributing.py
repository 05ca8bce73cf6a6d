"""The example of CONTRIBUTING.md keeps what a model promises."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

from dnrt_jax import arr, convert

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
CODE = re.findall(r"<!-- model -->\n```python\n(.*?)```", TEXT, re.DOTALL)[0]


def test_the_model_is_about_forty_lines_and_trains_with_raa_and_arr():
    assert len(CODE.splitlines()) <= 42
    names: dict = {}
    exec(CODE, names)
    model = names["MODELS"]["plain_32"](num_classes=3, image_size=8, width=4, depth=2)
    images, labels = jax.random.normal(jax.random.key(0), (6, 8, 8, 3)), jnp.arange(6) % 3
    variables = model.init(jax.random.key(1), images)
    assert len(variables["responses"]) == 2

    def loss_fn(params):
        logits, recorded = model.apply({"params": params}, images, mutable=["responses"])
        responses = recorded["responses"]
        targets, _ = arr.update(arr.init(responses, 3), responses, labels, momentum=0.1)
        return arr.loss(responses, targets) + (logits**2).sum()

    grads = jax.jit(jax.grad(loss_fn))(variables["params"])
    assert all(jnp.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(grads))
    torch_names = convert.to_torch({"params": variables["params"]}).keys()
    assert {"convs.0.weight", "acts.1.shift_proj_weight", "head.bias"} <= torch_names
