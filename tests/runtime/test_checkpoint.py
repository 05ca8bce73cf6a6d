import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from buckets import Fault

from dnrt_jax.runtime import bucket, checkpoint, storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.sharding import make_mesh, replicated


class Pair(NamedTuple):  # fields that are not in alphabetical order
    second: Any
    first: Any


@pytest.fixture
def state():
    return {
        "w": jnp.arange(6.0).reshape(2, 3),
        "inner": [Pair(jnp.int32(4), jnp.int32(5)), None, jnp.ones(3, bool)],
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "nothing": jnp.zeros((0, 2)),
    }


@pytest.fixture
def folder(tmp_path, state):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, shifted(state, step), step, config="{}", extra={"step": step})
    return tmp_path


def shifted(state, by):
    return state | {"w": state["w"] + by}


def target(state):
    whole = replicated(make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)


def files(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def test_what_goes_in_comes_out_bit_for_bit(folder, state):
    restored = checkpoint.restore(folder, target(state))
    assert (restored.step, restored.extra) == (3, {"step": 3})
    jax.tree.map(np.testing.assert_array_equal, restored.state, shifted(state, 3))
    assert checkpoint.restore(folder, target(state), 1).state["w"][0, 1] == 2


def test_the_format_of_another_version_is_named(folder, state, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(checkpoint.CheckpointError, match=r"its format is \d, this dnrt_jax has \d"):
        checkpoint.restore(folder, target(state))


def test_an_empty_folder_is_a_fresh_start_but_a_missing_step_is_an_error(tmp_path, state):
    assert checkpoint.restore(tmp_path, target(state)) is None
    with pytest.raises(
        checkpoint.CheckpointError, match="no checkpoint of step 7; there are: none"
    ):
        checkpoint.restore(tmp_path, target(state), 7)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit flipped": flip,
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "a byte short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "emptied": lambda p: p.write_bytes(b""),
    "deleted": lambda p: p.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_to_any_file_is_noticed_by_name_and_the_older_step_is_used(
    folder, state, damage, caplog
):
    for path in files(folder, 3):
        if not path.stat().st_size:
            continue
        whole = path.read_bytes()
        damage(path)
        caplog.clear()
        assert checkpoint.restore(folder, target(state)).step == 2
        if path.name != checkpoint.MANIFEST:
            assert path.name in caplog.text
        with pytest.raises(checkpoint.CheckpointError, match="step 3"):
            checkpoint.restore(folder, target(state), 3)
        path.write_bytes(whole)
    assert checkpoint.restore(folder, target(state)).step == 3


def test_all_damaged_is_an_error_not_a_fresh_start(folder, state):
    for step in (1, 2, 3):
        flip(files(folder, step)[0])
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.restore(folder, target(state))


def test_a_save_cut_short_leaves_the_older_step_and_is_swept(folder, state):
    (folder / "3" / checkpoint.MANIFEST).unlink()
    assert checkpoint.restore(folder, target(state)).step == 2
    checkpoint.keep(folder, 1, 3)
    assert [path.name for path in folder.iterdir()] == ["2"]


def test_a_damaged_newer_checkpoint_never_displaces_an_older_whole_one(folder, state):
    (folder / "3" / checkpoint.MANIFEST).write_text("{}")
    assert checkpoint.restore(folder, target(state)).step == 2
    checkpoint.keep(folder, 1, step=2)  # the run went on from 2
    assert checkpoint.steps(folder) == [2]


def test_the_last_n_and_the_best_are_kept(folder):
    checkpoint.keep(folder, 1, 3, also=1)
    assert checkpoint.steps(folder) == [1, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w": jnp.zeros((2, 4))}, r"w: float32\[2, 3\], the run has float32\[2, 4\]"),
        ({"w": jnp.zeros((2, 3), jnp.bfloat16)}, r"the run has bfloat16\[2, 3\]"),
        ({"v": jnp.zeros(1)}, r"v: absent, the run has float32\[1\]"),
    ],
)
def test_another_model_is_refused_with_the_differences(folder, state, change, said):
    with pytest.raises(checkpoint.CheckpointError, match=said) as error:
        checkpoint.restore(folder, target(state | change))
    assert "\n" not in str(error.value)


def test_a_manifest_made_up_by_hand_is_not_believed(folder, state):
    path = folder / "3" / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"step": 4}))
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(str(path))):
        checkpoint.restore(folder, target(state), 3)


def test_every_dtype_and_layout_comes_back(tmp_path):
    state = {
        "bf16": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3).T,
        "u8": jnp.arange(4, dtype=jnp.uint8),
        "scalar": jnp.int32(7),
    }
    checkpoint.save(tmp_path, state, 1, config="{}", extra={})
    restored = checkpoint.restore(tmp_path, target(state)).state
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored["bf16"].dtype == jnp.bfloat16


def test_a_file_that_is_no_checkpoint_stays(folder):
    (folder / "note.txt").write_text("mine")
    checkpoint.keep(folder, 1, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "note.txt"]


def copy(source, target):
    for name in storage.files(source):
        storage.make_folder((target / name).parent)
        storage.write(target / name, storage.read(source / name))


def test_a_checkpoint_is_read_where_it_was_copied_to(tmp_path, state, store):
    bucket = storage.path(f"gs://bucket/{tmp_path.name}")
    for source, there in (tmp_path / "disk", bucket / "copy"), (bucket, tmp_path / "copy"):
        checkpoint.save(source, state, 5, config="{}", extra={})
        copy(source, there)
        restored = checkpoint.restore(there, target(state))
        jax.tree.map(np.testing.assert_array_equal, restored.state, state)
        checkpoint.verify(there, 5)


def test_a_save_in_a_bucket_takes_six_requests_and_a_deletion_four(tmp_path, state, store):
    folder, counts = storage.path(f"gs://bucket/{tmp_path.name}"), []
    checkpoint.save(folder, state, 1, config="{}", extra={})
    for act in (
        lambda: checkpoint.save(folder, state, 2, config="{}", extra={}),
        lambda: checkpoint.keep(folder, 1, 2),
    ):
        before = len(store.requests)
        act()
        counts.append(len(store.requests) - before)
    assert counts == [6, 4]


@pytest.mark.parametrize("name", ["arrays.tar", checkpoint.MANIFEST])
def test_who_slept_in_a_save_replaces_nothing_of_the_run_that_took_over(
    tmp_path, state, store, monkeypatch, name
):
    folder, write = storage.path(f"gs://bucket/{tmp_path.name}"), bucket.write

    def slept(place, key, *args):
        if key.endswith(name):
            write(place, key, b"theirs")
        return write(place, key, *args)

    monkeypatch.setattr(bucket, "write", slept)
    with pytest.raises(WorkdirError, match=rf"{folder}/3/{name}: another run has written it"):
        checkpoint.save(folder, state, 3, config="{}", extra={})
    assert storage.read(folder / "3" / name) == b"theirs"


@pytest.mark.parametrize("name", ["arrays", "manifest"])
def test_a_save_whose_answer_is_lost_is_the_own(tmp_path, state, store, impatient, name):
    folder = storage.path(f"gs://bucket/{tmp_path.name}")
    store.faults.append(Fault("lose answer", f"POST /upload.*{name}"))
    checkpoint.save(folder, state, 3, config="{}", extra={})
    assert store.faults[0].times == 0
    checkpoint.verify(folder, 3)
