"""The folder of a set: its summary, its means, its members, without training any."""

import itertools
import json
import signal
from types import SimpleNamespace

import pytest

from dnrt_jax import command_line
from dnrt_jax import train as train_loop
from dnrt_jax.config import default, to_json
from dnrt_jax.runtime.errors import NonFiniteError
from dnrt_jax.runtime.profiling import Profile
from dnrt_jax.runtime.progress import Progress
from dnrt_jax.runtime.set_folder import SetFolder
from dnrt_jax.runtime.workdir import read_records

SEEDS = {"": ["seed0", "seed1", "seed2"]}
ACCURACIES = (0.98, 0.79, 0.72)  # whose deviation has another last bit in another order


def record(step, accuracy):
    return {"step": step, "epoch": step / 10, "test/acc": accuracy}


def summary(step, accuracy):
    return {"last": record(step, accuracy), "best": record(step, accuracy)}


def test_a_summary_of_an_earlier_end_does_not_count(tmp_path):
    with SetFolder(tmp_path, SEEDS) as folder:
        for name, step in zip(SEEDS[""], (60, 40, 60), strict=True):
            folder.members[name].write_json("summary.json", summary(step, step / 100))
        folder.summarize(unfinished=["seed1"])
        (about,) = folder.read_summary()["settings"]
    assert about["unfinished"] == ["seed1"]
    assert (about["last"]["step"]["n"], about["last"]["step"]["mean"]) == (2, 60)


def test_the_first_process_alone_summarizes(tmp_path):
    with SetFolder(tmp_path, SEEDS, is_main=False) as folder:
        folder.summarize()  # though it may not see the summaries of the members yet
    assert not (tmp_path / "summary.json").exists()


def test_the_means_do_not_depend_on_who_comes_first(tmp_path):
    found = set()
    each = zip(SEEDS[""], ACCURACIES, strict=True)
    for i, order in enumerate(itertools.permutations(each)):
        with SetFolder(tmp_path / str(i), SEEDS) as folder:
            folder.start(SEEDS[""])
            for name, accuracy in order:
                for _ in folder.add(name, record(10, accuracy)):
                    pass
        found.add(json.dumps(read_records(tmp_path / str(i))))
    assert len(found) == 1


def test_the_means_of_a_set_whose_members_ended_by_themselves_are_whole(tmp_path):
    with SetFolder(tmp_path, SEEDS) as folder:
        folder.start(SEEDS[""])
        for name in SEEDS[""]:
            folder.members[name].rewind(0)
            for step in (10, 20):
                folder.members[name].record(record(step, 0.5))
        assert read_records(tmp_path) == []
        folder.start([])
    assert [r["step"] for r in read_records(tmp_path)] == [10, 20]


def test_a_mean_is_of_steps_that_all_record_and_says_when_some_had_ended(tmp_path):
    steps = {"seed0": (20, 40), "seed1": (20, 40, 60), "seed2": (10, 20, 30, 40, 50, 60)}
    names = list(steps)
    with SetFolder(tmp_path, {"": names}) as folder:
        for name in names:
            folder.members[name].rewind(0)
        for name in names[:2]:
            for step in steps[name]:
                folder.members[name].record(record(step, 0.5))
        folder.start(names[2:])
        shown = []
        for step in steps["seed2"]:
            shown += [line.record["step"] for line in folder.add("seed2", record(step, 0.5))]
        list(folder.stop("seed2"))
    found = [(r["step"], r.get("members")) for r in read_records(tmp_path)]
    assert found == [(20, None), (40, None), (60, 2)]
    assert shown == [20, 40, 60]


def test_members_that_a_command_leaves_out_are_named(tmp_path, caplog):
    with SetFolder(tmp_path, {"": ["seed0", "seed1"]}) as folder:
        folder.write_members(folder.chosen("0,1", [], ["seed0", "seed1"]))
    with SetFolder(tmp_path, SEEDS) as folder:
        about = folder.chosen("0,1,2", [], ["seed2"])
        folder.write_members(about)
    assert about["trained"] == ["seed2"]
    assert not caplog.messages
    with SetFolder(tmp_path, {"": ["seed2", "seed3"]}) as folder:
        folder.chosen("2,3", [], ["seed3"])
    assert "the set had also seed0, seed1" in caplog.text


def test_one_member_that_is_left_of_several_leaves_no_means(tmp_path):
    for names in (["seed0", "seed1"], ["seed2"]):
        with SetFolder(tmp_path, {"": names}) as folder:
            folder.start(names)
            for name in names:
                list(folder.add(name, record(10, 0.5)))
        assert len(read_records(tmp_path)) == len(names) - 1


@pytest.fixture
def swept(tmp_path):
    """A set of one seed and two weights, whose first member never came to a step."""
    names = ["arr.weight=0,seed=0", "arr.weight=5,seed=0"]
    with SetFolder(tmp_path, {name.partition(",")[0]: [name] for name in names}) as folder:
        folder.write_members(folder.chosen("0", ["arr.weight=0,5"], names))
    (tmp_path / names[1] / "config.json").write_text(to_json(default()))
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "seeds", "sweep"),
    [
        ([], "0", ["arr.weight=0,5"]),
        (["--seeds=0,1"], "0,1", ["arr.weight=0,5"]),
        (["--sweep=arr.weight=0,5,20"], "0", ["arr.weight=0,5,20"]),
    ],
)
def test_the_folder_of_a_set_completes_the_command(swept, flags, seeds, sweep):
    args = command_line.parser().parse_args([f"--workdir={swept}", *flags])
    assert command_line.config_of(args, {}) == default()
    assert (args.seeds, args.sweep) == (seeds, sweep)


def run(name, *, failure=None, is_active=False):
    first = SimpleNamespace(task=SimpleNamespace(multiply_accumulates=lambda _: None), model=None)
    closed = SimpleNamespace(writer=SimpleNamespace(wait=lambda *_: None))
    return SimpleNamespace(
        name=name,
        step=5,
        experiment=first,
        calendar=SimpleNamespace(total=10),
        failure=failure,
        is_active=is_active,
        is_finished=False,
        workdir=closed,
    )


@pytest.mark.parametrize("stopped", [True, False])
def test_a_signal_counts_though_a_member_has_diverged(tmp_path, monkeypatch, stopped):
    lost = run("seed0", failure=NonFiniteError("loss is not finite at step 3"))
    other = run("seed1", is_active=True)
    with SetFolder(tmp_path, {"": ["seed0", "seed1"]}) as folder, train_loop.Stop() as stop:

        def advance(progress, wait):
            stop.signal = signal.SIGTERM if stopped else 0
            other.is_active = stopped
            return iter(())

        group = SimpleNamespace(runs=[lost, other], advance=advance, save=lambda: None)
        group.trainer = SimpleNamespace(state=lambda member: None)
        monkeypatch.setattr(train_loop, "groups_of", lambda runs: [group])
        totals = []
        monkeypatch.setattr(Progress, "expect", lambda self, total: totals.append(total))
        fit = lambda: train_loop.fit([lost, other], stop, folder, Profile(tmp_path, 0))
        if stopped:
            assert not fit()
            assert totals == [15]  # 5 steps of the lost member and all of the other
            return
        other.failure = NonFiniteError("loss is not finite at step 4")
        with pytest.raises(NonFiniteError, match=r"seed0: loss .*; seed1: loss"):
            fit()
