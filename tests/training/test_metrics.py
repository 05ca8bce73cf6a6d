import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from dnrt_jax.runtime.errors import DataError
from dnrt_jax.training import metrics


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


def test_labels_of_one_byte_are_counted_as_any():
    labels = np.arange(100, dtype=np.uint8)
    np.testing.assert_array_equal(counts(labels, labels, 100), np.eye(100))


def test_a_label_that_is_no_class_is_answered():
    sums = {"confusion": np.eye(3), "count": 4, "non_finite": 0}
    with pytest.raises(DataError, match="the labels of 1 nodes are not classes, 0 to 2"):
        metrics.summary(sums, "nodes")


def test_saturated_logits_keep_their_order():
    margins, labels = np.array([50.0, 60, 70, 80]), np.array([0, 0, 1, 1])
    for classes in (2, 3):
        logits = np.full((4, classes), -100.0)
        logits[:, 0], logits[:, 1] = -margins / 2, margins / 2
        assert metrics.macro_roc_auc(logits, labels) == 1


@pytest.mark.parametrize("values", [1000, 7, 1])  # few values: many ties
def test_auc_is_how_often_a_positive_is_above_a_negative_ties_half(values):
    rng = np.random.default_rng(values)
    positive = rng.random(500) < 0.2
    scores = rng.integers(0, values, 500) + positive * rng.integers(0, 2, 500)
    difference = scores[positive][:, None] - scores[~positive]
    expected = ((difference > 0) + (difference == 0) / 2).mean()
    assert metrics.roc_auc(scores, positive) == pytest.approx(expected)


def test_macro_auc_is_one_versus_the_rest_and_of_two_classes_that_of_the_second():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((300, 4)), rng.integers(0, 4, 300)
    probs = softmax(logits, axis=1)
    wanted = roc_auc_score(labels, probs, multi_class="ovr", average="macro")
    assert metrics.macro_roc_auc(logits, labels) == pytest.approx(wanted)
    two, labels = logits[:, :2], labels % 2
    wanted = roc_auc_score(labels, two[:, 1] - two[:, 0])
    assert metrics.macro_roc_auc(two, labels) == pytest.approx(wanted)


def test_macro_auc_leaves_out_a_class_that_does_not_occur():
    logits, labels = np.random.default_rng(0).standard_normal((9, 3)), np.arange(9) % 2
    probs = softmax(logits, axis=1)
    wanted = np.mean([metrics.roc_auc(probs[:, k], labels == k) for k in (0, 1)])
    assert metrics.macro_roc_auc(logits, labels) == pytest.approx(wanted)


def test_auc_of_one_class_alone_is_not_a_number():
    assert np.isnan(metrics.roc_auc([0.1, 0.2], [True, True]))


def test_auc_of_over_a_million_scores_takes_under_two_seconds():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((1_200_000, 2), np.float32), rng.random(1_200_000) < 0.0127
    start = time.process_time()
    assert abs(metrics.macro_roc_auc(logits, labels) - 0.5) < 0.02
    assert time.process_time() - start < 2


def test_accuracy_by_frequency_splits_classes_by_their_training_images():
    confusion = np.diag([9, 6, 4, 1]) + np.eye(4, k=-1, dtype=int) * 2
    accuracy = np.diag(confusion) / confusion.sum(1)
    found = metrics.by_frequency(confusion, [5000, 101, 20, 19], "abcd")
    assert found["acc_many"] == pytest.approx(accuracy[:2].mean())
    assert found["acc_medium"] == accuracy[2]
    assert found["acc_few"] == accuracy[3]
    assert [found[f"acc_class_{name}"] for name in "abcd"] == accuracy.tolist()
    assert "acc_few" not in metrics.by_frequency(confusion, [5000, 101, 20, 20], "abcd")


def test_accuracy_by_frequency_leaves_out_classes_without_evaluated_images():
    found = metrics.by_frequency(np.diag([5, 5, 0]), [500, 10, 5], "abc")
    assert found == {"acc_many": 1, "acc_few": 1, "acc_class_a": 1, "acc_class_b": 1}
