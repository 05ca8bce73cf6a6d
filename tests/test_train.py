"""What is due at a step, the window of means, the speed, profiles, and the signals."""

import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dnrt_jax.run import Run
from dnrt_jax.runtime.profiling import Profile
from dnrt_jax.runtime.progress import Progress, Speed
from dnrt_jax.train import Group, Stop
from dnrt_jax.training.calendar import Calendar
from dnrt_jax.training.window import Window

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
    assert CALENDAR.due(3) == (False, False, False)
    assert CALENDAR.due(7) == (True, False, False)
    assert CALENDAR.due(10) == (True, True, True)  # an evaluation has a record
    assert CALENDAR.due(44) == (True, True, True)


def test_a_window_shows_means_of_finite_steps_and_begins_anew():
    window = Window({}, 0)
    window.add({"loss": np.array([1.0, np.nan, 3.0])}, np.array([True, False, True]))
    assert window.skipped == 1
    assert window.take_means() == {"train/loss": 2.0}
    assert window.take_means() == {}


SAMPLES, SECONDS = 100, 1e-3  # of a step


class Device:
    """A trainer on a device that runs in order what is dispatched to it: 100,000 samples/s."""

    free = 0.0

    def run(self, starts, count):
        ready = Device.free = max(time.monotonic(), Device.free) + count * SECONDS

        def later():
            time.sleep(max(ready - time.monotonic(), 0))
            return {"loss": np.ones(count)}

        return [later]

    def state(self, member):
        return None


def training(monkeypatch, name):
    """A group of one run, which logs each 40 steps of dispatches of 16."""
    monkeypatch.setattr(Run, "__init__", lambda self: None)
    run, logged = Run(), {"on_nonfinite": "stop", "max_skipped": 9, "dispatch_steps": 16}
    config = SimpleNamespace(train=SimpleNamespace(**logged))
    task = SimpleNamespace(batch_size=SAMPLES)
    run.experiment = SimpleNamespace(config=config, task=task, rate=lambda step: 0.0)
    run.calendar = Calendar(log=40, evaluate=10**6, save=10**6, epoch=10**6, total=10**6)
    run.name, run.step, run.window, run.failure = name, 0, Window({}, 0), None
    run._steps, run._speed, run._macs, run._is_patient = [], Speed(), None, True
    run._best_step, run._saved = None, 0
    nothing = lambda *_: None
    run.workdir = SimpleNamespace(check=nothing, write_config=nothing, record=nothing)
    return Group([run], Device())


@pytest.mark.parametrize(("count", "agrees"), [(1, False), (2, False), (1, True)])
def test_the_speed_is_that_of_the_device_also_if_groups_take_turns_or_processes_agree(
    monkeypatch, count, agrees
):
    groups = [training(monkeypatch, str(i)) for i in range(count)]
    progress = SimpleNamespace(update=lambda count: None)
    speeds = []
    for _ in range(9):
        for group in groups:
            records = group.advance(progress, wait=count > 1)
            speeds += [record["train/images_per_sec"] for _, record in records]
            if agrees:  # of several processes, whether to stop, after what was dispatched before
                time.sleep(max(Device.free - time.monotonic(), 0))
    assert len(speeds) == 3 * count
    # A busy machine may wait longer than it should.
    assert all(0.5 < speed * SECONDS / SAMPLES < 1.05 for speed in speeds), speeds


def test_the_rate_on_record_is_that_of_the_optimizer_which_counts_no_skipped_step(monkeypatch):
    group = training(monkeypatch, "")
    (run,) = group.runs
    run.experiment.config.train.on_nonfinite, run.experiment.config.train.max_skipped = "skip", 20
    run.experiment.rate = lambda step: step
    losses = iter([np.full(16, np.nan), np.ones(16), np.ones(8)])
    group.trainer.run = lambda starts, count: [lambda: {"loss": next(losses)}]
    progress = SimpleNamespace(update=lambda count: None)
    (record,) = (r for _ in range(3) for _, r in group.advance(progress, wait=False))
    assert (record["step"], record["train/skipped"], record["train/lr"]) == (40, 16, 23)


def test_the_time_left_is_that_of_the_steps_that_are_still_to_come():
    progress = Progress(0, 200)
    progress.update(10)
    progress._started = time.monotonic() - 10
    progress.update(10)
    progress.expect(120)  # a run of a set has ended 80 steps early
    assert progress._time().endswith(" 01:40 left")


def test_a_profile_begins_and_ends_where_the_device_has_done_its_steps(monkeypatch, tmp_path):
    calls = []
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *_, name=name: calls.append(name))
    profile = Profile(tmp_path, 20)
    for i in range(4):
        profile.after(10, lambda i=i: calls.append(f"waits for {i}"))
    assert calls == ["waits for 0", "start_trace", "waits for 2", "stop_trace"]


def test_a_profile_without_a_step_in_it_is_a_warning(monkeypatch, tmp_path, caplog):
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *_: None)
    for dispatches, warned in ((1, True), (2, False)):
        profile = Profile(tmp_path, 2)
        for _ in range(dispatches):
            profile.after(2, lambda: None)
        profile.close()
        assert ("profile: no step in it" in caplog.text) == warned
        caplog.clear()


def test_a_first_signal_asks_and_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert stop.signal == 0
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert stop.status == 128 + signal.SIGINT
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
