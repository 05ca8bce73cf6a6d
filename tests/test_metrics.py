import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER
from sklearn.metrics import precision_recall_fscore_support

from dnrt_jax import metrics


def counts(labels, predictions, num_classes, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else mask
    logits = jax.nn.one_hot(jnp.asarray(predictions), num_classes)
    return metrics.confusion(logits, jnp.asarray(labels), mask, num_classes)


def test_values_are_the_authors_exactly():
    golden = json.loads((FOLDER / "metrics.json").read_text())
    ours = metrics.classification(counts(golden["targets"], golden["preds"], 10))
    assert ours == {name: golden[name] for name in ours}


def test_values_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 6, (2, 300))
    ours = metrics.classification(counts(labels, predictions, 8))
    wanted = precision_recall_fscore_support(labels, predictions, average="macro", zero_division=0)
    assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(wanted[:3])
    assert ours["acc"] == np.mean(labels == predictions)


def test_masked_rows_do_not_count():
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(counts([0, 1, 1], [0, 0, 0], 2, mask), [[1, 0], [1, 0]])
