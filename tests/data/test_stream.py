import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from making import encoded, pets, turned, write_archive, write_folder
from PIL import Image

from dnrt_jax.data import datasets, decode, stream
from dnrt_jax.data.order import epoch_order
from dnrt_jax.data.source import Subset
from dnrt_jax.runtime.errors import DataError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augment.npz")
KEYS = ("inputs", "label", "mask")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """21 images of two classes and several sizes; image i is one grey value, 3 i."""
    root = tmp_path_factory.mktemp("data")
    files = {f"train/cat/{i:02}.png": encoded(3 * i, (8 + i, 12)) for i in range(12)}
    files |= {f"train/dog/{i:02}.png": encoded(3 * i, (9, 30 - i)) for i in range(12, 21)}
    write_folder(root / "set", files)
    return datasets.find("set", root, "train")


def streamed(source, **options):
    return stream.Stream(source, **{"batch_size": 5, "side": 6, **options})


def identities(batches) -> list[int]:
    return [int(v) // 3 for b in batches for v in b["inputs"][b["mask"]][:, 0, 0, 0]]


def equal(a, b) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in KEYS)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 21, 40, 64])
def test_an_epoch_sees_every_image_once_in_order(source, batch_size):
    batches = list(streamed(source, batch_size=batch_size).epoch())
    assert identities(batches) == list(range(21))
    assert {b["inputs"].shape for b in batches} == {(batch_size, 6, 6, 3)}
    labels = np.concatenate([b["label"][b["mask"]] for b in batches])
    assert labels.tolist() == [0] * 12 + [1] * 9
    dtypes = {key: batches[0][key].dtype for key in KEYS}
    assert dtypes == {"inputs": np.uint8, "label": np.int32, "mask": bool}


def test_the_streamed_split_is_the_one_in_memory(source):
    in_memory = datasets.decode_all(source, "set", 32, "stop")
    batches = list(streamed(source, side=decode.eval_side(32), batch_size=7).epoch())
    np.testing.assert_array_equal(in_memory.images, np.concatenate([b["inputs"] for b in batches]))
    np.testing.assert_array_equal(in_memory.labels, np.concatenate([b["label"] for b in batches]))


def test_the_order_depends_on_seed_and_epoch_alone(source):
    first = streamed(source, shuffle=True, seed=1)
    epochs = [identities(first.epoch()) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(21))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[1] == epoch_order(1, 1, 21).tolist()
    assert epochs[0] == identities(streamed(source, shuffle=True, seed=1, batch_size=8).epoch())
    assert epochs[0] != identities(streamed(source, shuffle=True, seed=2).epoch())


def test_the_last_batch_is_filled_up_from_the_epochs_beginning(source):
    batches = list(streamed(source, shuffle=True).epoch())
    assert batches[-1]["mask"].tolist() == [True, False, False, False, False]
    np.testing.assert_array_equal(batches[-1]["inputs"][1:], batches[0]["inputs"][:4])


CROP = {"crop": stream.RandomResizedCrop(), "shuffle": True, "seed": 3}


def test_the_hosts_parts_are_the_global_batch(source):
    options = CROP | {"batch_size": 12}
    whole = streamed(source, **options)
    hosts = [streamed(source, **options, process_index=i, process_count=3) for i in range(3)]
    for _ in range(3):
        parts = [next(host) for host in hosts]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
        assert equal(next(whole), joined)


def test_chunks_are_invisible(source, monkeypatch):
    expected = next(streamed(source, **CROP, batch_size=21))
    monkeypatch.setattr(stream, "CHUNK", 4)
    assert equal(next(streamed(source, **CROP, batch_size=21)), expected)


def test_two_workers_and_a_resume_in_mid_epoch_change_nothing(source):
    plain = streamed(source, **CROP)
    expected = [next(plain) for _ in range(8)]
    with_workers = streamed(source, **CROP, workers=2)
    try:
        assert all(equal(next(with_workers), batch) for batch in expected[:3])
        state = with_workers.get_state()
    finally:
        with_workers.close()
    resumed = streamed(source, **CROP, workers=1)
    resumed.set_state(pickle.loads(pickle.dumps(state)))
    try:
        assert all(equal(next(resumed), batch) for batch in expected[3:])
        assert resumed.get_state() == plain.get_state() == {"position": 8}
        plain.set_state({"position": 0})
        assert equal(next(plain), expected[0])
    finally:
        resumed.close()


def test_crop_boxes_have_the_reference_distribution():
    draws = np.random.default_rng(0).random((50_000, 10, 4))
    crop = stream.RandomResizedCrop()
    left, top, width, height = np.array([stream.random_box(32, 32, crop, d) for d in draws]).T
    i, j, h, w = GOLDEN["stats/crop_ijhw"].T.astype(int)
    pairs = [(top, i), (left, j), (width * height, w * h), (width / height, w / h)]
    for ours, theirs in pairs:
        grid = np.unique(theirs)
        cumulated = [np.searchsorted(np.sort(x), grid, "right") / x.size for x in (ours, theirs)]
        assert np.abs(cumulated[0] - cumulated[1]).max() < 0.02


@pytest.mark.parametrize(("size", "box"), [((100, 8), (44, 0, 11, 8)), ((8, 100), (0, 44, 8, 11))])
def test_a_narrow_image_gives_the_largest_centred_box(size, box):
    crop = stream.RandomResizedCrop(area=(1.0, 1.0))
    assert stream.random_box(*size, crop, np.full((10, 4), 0.5)) == box


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours, as JPEG likes them."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("name", "resample"), [("bilinear", 2), ("bicubic", 3)])
def test_a_crop_is_pillows(name, resample):
    draws = np.random.default_rng(1).random(41)
    image, crop = photo((60, 40)), stream.RandomResizedCrop(interpolation=name)
    left, top, width, height = stream.random_box(60, 40, crop, draws[:40].reshape(10, 4))
    cropped = image.crop((left, top, left + width, top + height))
    expected = cropped.resize((32, 32), Image.Resampling(resample))
    ours = stream.random_resized_crop(image, 32, crop, draws)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def test_random_interpolation_takes_both():
    image = photo((60, 40))
    seen = set()
    for seed in range(8):
        draws = np.random.default_rng(1).random(41)
        draws[40] = np.random.default_rng(seed).random()
        crop = stream.RandomResizedCrop()
        seen.add(stream.random_resized_crop(image, 32, crop, draws).tobytes())
    assert len(seen) == 2


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path):
    path = tmp_path / "photo.jpg"
    photo((401, 299)).save(path, quality=95)
    crop = stream.RandomResizedCrop(area=(0.4, 1.0), interpolation="bilinear")
    for seed in range(5):
        draws = np.random.default_rng(seed).random(41)
        with Image.open(path) as small, Image.open(path) as full:
            full.load()
            ours = np.asarray(stream.random_resized_crop(small, 24, crop, draws), int)
            assert small.size[0] < 401
            expected = np.asarray(stream.random_resized_crop(full, 24, crop, draws), int)
        assert np.abs(ours - expected).mean() < 1


@pytest.mark.parametrize("side", [24, 96])  # decoded at a fraction, and as a whole
@pytest.mark.parametrize("number", range(1, 9))
def test_the_box_is_one_of_the_upright_picture(number, side):
    picture = photo((320, 240))
    crop = stream.RandomResizedCrop(area=(0.4, 1.0), interpolation="bilinear")
    draws = np.random.default_rng(3).random(41)
    expected = np.asarray(stream.random_resized_crop(picture, side, crop, draws), int)
    data = turned(picture, number, quality=95)
    with decode.opened(data, "photo") as image:
        ours = np.asarray(stream.random_resized_crop(image, side, crop, draws), int)
        assert (max(image.size) < 320) == (side == 24)
    assert np.abs(ours - expected).mean() < 1.5


def test_a_broken_image_stops_the_stream_with_one_line(tmp_path):
    write_folder(tmp_path / "pets", pets() | {"train/cat/2.png": b"text"})
    pets_source = datasets.find("pets", tmp_path, "train")
    with pytest.raises(DataError, match=r"cat/2\.png: not an image.*data\.on_error=skip"):
        list(streamed(pets_source).epoch())


def test_skipped_images_are_masked_counted_and_capped(tmp_path, caplog):
    write_folder(tmp_path / "pets", pets(100) | {"train/cat/2.png": b"", "train/dog/7.png": b"?"})
    pets_source = datasets.find("pets", tmp_path, "train")
    lenient = streamed(pets_source, on_error="skip", batch_size=10)
    masks = np.concatenate([batch["mask"] for _ in range(2) for batch in lenient.epoch()])
    assert np.flatnonzero(~masks).tolist() == [12, 167, 212, 367]
    assert caplog.text.count("2.png: empty file") == 1
    write_folder(tmp_path / "pets", {"train/dog/8.png": b"?"})
    strict = streamed(pets_source, on_error="skip", batch_size=10)
    with pytest.raises(DataError, match="3 of 200 images are broken"):
        list(strict.epoch())


def test_a_file_that_vanished_is_a_broken_image(tmp_path):
    write_folder(tmp_path / "pets", pets())
    pets_source = datasets.find("pets", tmp_path, "train")
    (tmp_path / "pets/train/cat/0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0\.png: No such file"):
        next(streamed(pets_source))


def test_a_label_out_of_range_is_named(tmp_path):
    write_folder(tmp_path / "pets", pets())
    pets_source = datasets.find("pets", tmp_path, "train")
    pets_source.labels[1] = 2
    with pytest.raises(DataError, match=r"cat/1\.png: label 2 outside 0\.\.1"):
        next(streamed(pets_source))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 22, "shuffle": True}, "batch_size=22: more than the 21 images"),
        ({"process_count": 2}, "batch_size=5: not divisible by 2 hosts"),
    ],
)
def test_impossible_sizes_are_named(source, options, words):
    with pytest.raises(DataError, match=words):
        streamed(source, **options)


def test_an_archive_is_not_streamed(tmp_path):
    write_archive(tmp_path / "pets.tar", pets())
    with pytest.raises(DataError, match=r"pets\.tar: .*extract it to a folder"):
        streamed(datasets.find("pets", tmp_path, "train"))


def test_a_part_of_a_source_streams_and_a_part_of_an_archive_does_not(source, tmp_path):
    part = Subset(source, np.array([20, 3, 11], np.int32))
    assert identities(streamed(part, batch_size=2).epoch()) == [20, 3, 11]
    write_archive(tmp_path / "pets.tar", pets())
    archive = datasets.find("pets", tmp_path, "train")
    with pytest.raises(DataError, match="extract it to a folder"):
        streamed(Subset(archive, np.arange(2)))


def test_a_streamed_test_split_that_lacks_a_class_is_one_warning(tmp_path, caplog):
    files = {f"train/{name}/1.png": encoded(3) for name in ("cat", "dog")}
    write_folder(tmp_path / "pets", files | {"val/dog/1.png": encoded(7)})
    for _ in range(2):
        test = streamed(datasets.find("pets", tmp_path, "test"), batch_size=1)
        assert next(test)["label"].tolist() == [1]
    assert len(caplog.messages) == 1
    assert "no image of 1 of 2 classes: 'cat'" in caplog.text


def test_what_is_large(source, tmp_path, monkeypatch):
    assert not stream.is_large(source, 224)
    assert stream.is_large(source, 20_000)
    write_archive(tmp_path / "pets.tar", pets())
    archive = datasets.find("pets", tmp_path, "train")
    assert not stream.is_large(archive, 20_000)
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 1000)
    assert stream.is_large(archive, 6)


def program_of(folder, body):
    """A program with a stream `batches` of two images each, by one worker."""
    write_folder(folder / "pets", pets())
    lines = [
        "from pathlib import Path",
        "from dnrt_jax.data import datasets, stream",
        "if __name__ == '__main__':",
        f"    source = datasets.find('pets', Path({str(folder)!r}), 'train')",
        "    batches = stream.Stream(source, batch_size=2, side=6, workers=1)",
    ]
    path = folder / "program.py"
    path.write_text("\n".join([*lines, textwrap.indent(body, "    ")]))
    return path


def test_workers_leave_signals_to_the_run_and_end_with_it(tmp_path):
    """Ctrl-C reaches all processes of a terminal's group; the run saves before it ends."""
    body = """
import multiprocessing, os, signal
next(batches)
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: got.append(1))
    os.killpg(0, number)
for _ in range(8):
    next(batches)
(worker,) = multiprocessing.active_children()
print(len(got), worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    program = program_of(tmp_path, body)
    run = [sys.executable, program]
    done = subprocess.run(run, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    signals, worker = map(int, done.stdout.split())
    assert signals == 2
    stop = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < stop, "the worker outlives the run"
        time.sleep(0.1)


def test_a_worker_that_is_killed_is_one_line(source):
    batches = streamed(source, **CROP, workers=1)
    try:
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"was killed \(.*\), perhaps as memory ran out"):
            [next(batches) for _ in range(20)]
    finally:
        batches.close()


def test_a_program_that_ends_without_closing_says_nothing(tmp_path):
    program = program_of(tmp_path, "print(next(batches)['label'])")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[0 0]\n", "")
