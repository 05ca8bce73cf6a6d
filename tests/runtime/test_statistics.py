import numpy as np
import pytest
from scipy import stats

from dnrt_jax.runtime.statistics import describe, describe_records


def test_mean_deviation_and_interval_are_those_of_the_t_distribution():
    values = [0.91, 0.95, 0.9, 0.96]
    found = describe(values)
    mean, error = np.mean(values), stats.sem(values)
    assert (found["n"], found["mean"]) == (4, pytest.approx(mean))
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert found["interval"] == pytest.approx(stats.t.interval(0.95, 3, mean, error))


def test_one_value_has_no_deviation():
    assert describe([0.5]) == {"n": 1, "mean": 0.5, "deviation": None, "interval": None}


def test_only_what_all_records_have_is_described():
    records = [{"acc": 1.0, "speed": None, "top5": 1.0}, {"acc": 0.0, "speed": 3.0}]
    assert list(describe_records(records)) == ["acc"]
    assert describe_records(records)["acc"]["mean"] == 0.5
