"""What is due at a step, the window of means, and the signals."""

import signal

import numpy as np

from dnrt_jax.run import Calendar, Window
from dnrt_jax.train import Stop

CALENDAR = Calendar(log=7, evaluate=10, save=5, epoch=12, total=44)


def test_dispatches_end_where_something_is_due_or_the_epoch_does():
    step, ends = 0, []
    while step < CALENDAR.total:
        step += CALENDAR.until_next(step, most=100)
        ends.append(step)
    due = {n for n in range(1, 45) if n % 7 == 0 or n % 10 == 0 or n % 5 == 0 or n % 12 == 0}
    assert ends == sorted(due | {44})
    assert CALENDAR.until_next(0, most=3) == 3


def test_what_is_due_is_a_function_of_the_step():
    assert CALENDAR.due(3) == (False, False, False, False)
    assert CALENDAR.due(7) == (True, False, False, False)
    assert CALENDAR.due(10) == (True, True, True, False)  # an evaluation has a record
    assert CALENDAR.due(44) == (True, True, True, True)


def test_a_window_shows_means_of_finite_steps_and_begins_anew():
    window = Window({}, 0)
    window.add({"loss": np.array([1.0, np.nan, 3.0])}, np.array([True, False, True]))
    assert window.skipped == 1
    assert window.take_means() == {"train/loss": 2.0}
    assert window.take_means() == {}


def test_a_first_signal_asks_and_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert stop.signal == 0
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert stop.status == 128 + signal.SIGINT
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
