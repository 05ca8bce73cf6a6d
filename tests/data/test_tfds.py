"""tensorflow-datasets prepares the tiny set of these tests itself: given encoded images, it needs
no TensorFlow for array_record."""

import io
import json
import pickle
import re
import shutil
import struct

import numpy as np
import pytest
from making import encoded

from dnrt_jax.data import datasets, decode, stream, tfds
from dnrt_jax.runtime.errors import DataError, DataNotFoundError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets

    class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.10")

        def _info(self):
            features = {
                "image": tensorflow_datasets.features.Image(shape=(None, None, 3)),
                "label": tensorflow_datasets.features.ClassLabel(names=["odd", "even"]),
            }
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=tensorflow_datasets.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 8),
                "validation": self._generate_examples(8, 12),
                "test": ((0, {"image": io.BytesIO(encoded(99)), "label": -1}) for _ in range(1)),
            }

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": io.BytesIO(encoded(i)), "label": i % 2}

    root = tmp_path_factory.mktemp("data")
    Tiny(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(scope="module")
def tfrecord_dir(data_dir, tmp_path_factory):
    """The same set as tfrecord files."""
    root = tmp_path_factory.mktemp("tfrecord")
    source = data_dir / "tiny" / "1.0.10"
    target = root / "tiny" / "1.0.10"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if "array_record" not in path.name:
            text = path.read_text().replace("array_record", "tfrecord")
            (target / path.name).write_text(text)
    for path in source.glob("*.array_record-*"):
        made = tfds._array_records(source, [str(path)])
        records = [made[i] for i in range(len(made))]
        data = b"".join(struct.pack("<Q", len(r)) + b"crc1" + r + b"crc2" for r in records)
        (target / path.name.replace("array_record", "tfrecord")).write_bytes(data)
    return root


@pytest.fixture(params=["data_dir", "tfrecord_dir"])
def either_dir(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", ["tfds:tiny", "tiny", "tfds:tiny:1.0.10"])
def test_a_prepared_folder_is_read(either_dir, name):
    train = datasets.load(name, either_dir, "train", image_size=8)
    test = datasets.load(name, either_dir, "test", image_size=8)
    assert train.class_names == ("odd", "even")
    assert sorted(train.images[:, 0, 0, 0].tolist()) == list(range(8))
    assert sorted(test.images[:, 0, 0, 0].tolist()) == [8, 9, 10, 11]
    np.testing.assert_array_equal(train.images[:, 0, 0, 0] % 2, train.labels)


def test_a_test_split_without_labels_is_passed_over(either_dir):
    found = datasets.load("tiny", either_dir, "test", image_size=6)  # as of ImageNet
    assert sorted(found.labels) == [0, 0, 1, 1]


def test_the_newest_version_that_is_complete_is_found(tmp_path):
    for version in ("1.0.2", "1.0.10", "2.0.0", "not.a.version"):
        (tmp_path / "set" / version).mkdir(parents=True)
    for version in ("1.0.2", "1.0.10", "not.a.version"):
        (tmp_path / "set" / version / "dataset_info.json").touch()
    found = tfds.find("set", tmp_path)
    assert found is not None
    assert found.name == "1.0.10"


def test_an_unprepared_set_names_the_command(tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match=r"tensorflow.*download_and_prepare") as caught:
        datasets.load("tfds:mnist", tmp_path, image_size=28)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_known_without_decoding(either_dir, monkeypatch):
    expected = datasets.load("tfds:tiny", either_dir, "train", image_size=8).labels
    monkeypatch.setattr(decode, "decode", None)
    labels = datasets.find("tfds:tiny", either_dir, "train").labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("kind", ["data_dir", "tfrecord_dir"])
def test_a_damaged_file_of_records_is_named(request, kind, tmp_path):
    data_dir = request.getfixturevalue(kind)
    shutil.copytree(data_dir, tmp_path / "data")
    folder = tmp_path / "data" / "tiny" / "1.0.10"
    for path in folder.glob("*train*"):
        path.write_bytes(b"no records at all")
    with pytest.raises(DataError, match=r"1\.0\.10.* is (damaged|truncated)"):
        datasets.load("tfds:tiny", tmp_path / "data", image_size=8)


def test_a_damaged_record_is_a_broken_image(tfrecord_dir, tmp_path):
    shutil.copytree(tfrecord_dir, tmp_path / "data")
    (path,) = (tmp_path / "data" / "tiny" / "1.0.10").glob("*train*")
    content = bytearray(path.read_bytes())
    content[12:40] = bytes(28)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\[0\] cannot be read .*data\.on_error=skip"):
        datasets.load("tfds:tiny", tmp_path / "data", image_size=8)
    left = datasets.load("tfds:tiny", tmp_path / "data", image_size=8, on_error="skip")
    assert len(left) == 7


def altered(data_dir, tmp_path, change) -> str:
    """A copy of the prepared set with a change to the text of each of its json files."""
    target = tmp_path / "tiny" / "1.0.10"
    target.mkdir(parents=True)
    for path in (data_dir / "tiny" / "1.0.10").iterdir():
        data = path.read_bytes()
        is_json = path.suffix == ".json"
        (target / path.name).write_bytes(change(data.decode()).encode() if is_json else data)
    return "tfds:tiny"


def without_image(text: str) -> str:
    info = json.loads(text)
    if "featuresDict" in info:
        info["featuresDict"]["features"].pop("image")
    return json.dumps(info)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-40], "is damaged"),
        (
            lambda text: re.sub('"(test|validation)"', r'"\1_x"', text),
            "no split test or validation",
        ),
        (lambda text: re.sub('"4"', '"5"', text), "has 4 records instead of 5"),
        (lambda text: text.replace("array_record", "parquet"), "missing"),
        (without_image, "not for image classification"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(data_dir, tmp_path, change, words):
    name = altered(data_dir, tmp_path, change)
    with pytest.raises(DataError, match=words) as caught:
        datasets.load(name, tmp_path, "test", image_size=8)
    assert str(tmp_path) in str(caught.value)


def test_a_truncated_tfrecord_is_named(tfrecord_dir, tmp_path):
    path = next((tfrecord_dir / "tiny" / "1.0.10").glob("*train.tfrecord*"))
    for keep in (5, 300, path.stat().st_size - 1):
        cut = tmp_path / "cut.tfrecord"
        cut.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"cut\.tfrecord is truncated"):
            tfds.TFRecords([str(cut)])


def test_a_prepared_set_goes_to_workers_and_streams(either_dir):
    source = datasets.find("tfds:tiny", either_dir, "train")
    expected = datasets.load("tfds:tiny", either_dir, "train", image_size=8)
    reader = stream.Stream(pickle.loads(pickle.dumps(source)), batch_size=3, side=6)
    batches = list(reader.epoch())
    images = np.concatenate([batch["inputs"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(images, expected.images)
