import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import encoded, pets, write_archive, write_folder

from dnrt_jax.data import datasets
from dnrt_jax.runtime.errors import DataError, DataNotFoundError


def load(name, root, split="train", **options):
    return datasets.load(name, root, split, image_size=8, **options)


def made(counts, size=4) -> datasets.Dataset:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    pixels = np.zeros((labels.size, size, size, 3), np.uint8)
    return datasets.Dataset(pixels, labels, tuple(f"c{i}" for i in range(len(counts))))


def test_digits_split_is_fixed_stratified_and_complete(tmp_path):
    train, test = load("digits", tmp_path), load("digits", tmp_path, "test")
    assert train.images.shape == (1442, 8, 8, 1)
    assert test.images.shape == (355, 8, 8, 1)
    assert np.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert (train.images.min(), train.images.max()) == (0, 255)
    # The first of the test images, and a sum over all: another split or order would change them.
    assert test.labels[:12].tolist() == [5, 0, 9, 8, 7, 1, 2, 6, 3, 4, 0, 2]
    positions = np.arange(1, len(test.images) + 1)
    assert int((test.images.astype(np.int64).sum((1, 2, 3)) * positions).sum()) == 314_124_078


@pytest.mark.parametrize(("imbalance", "total"), [(10, 20_431), (50, 13_996), (100, 12_406)])
def test_long_tailed_cifar10_has_the_published_totals(imbalance, total):
    tailed = datasets.long_tailed(made([5000] * 10, size=1), imbalance)
    assert len(tailed.labels) == total
    counts = np.bincount(tailed.labels)
    assert counts[0] == 5000
    assert counts[-1] == 5000 // imbalance


def test_long_tail_keeps_the_first_images_in_file_order():
    labels = np.tile(np.arange(2, dtype=np.int32), 4)
    pixels = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    tailed = datasets.long_tailed(datasets.Dataset(pixels, labels, ("a", "b")), 2)
    assert tailed.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 6]


def test_a_class_too_small_for_its_place_in_the_tail_is_named(caplog):
    datasets.long_tailed(made([4, 20]), 2)
    assert "class 'c0' has only 4 of the 20 images that the profile wants" in caplog.text


def test_long_tail_leaves_the_test_split_alone(tmp_path):
    write_folder(tmp_path / "pets", pets(4))
    assert np.bincount(load("pets", tmp_path, imbalance=4).labels).tolist() == [4, 1]
    assert np.bincount(load("pets", tmp_path, "test", imbalance=4).labels).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("dataset", "imbalance", "words"),
    [
        (made([5, 5]), 0.5, "imbalance=0.5: needs a ratio from 1"),
        (made([5]), 10, "two classes"),
        (made([5, 5]), 10, "leaves class 'c1' no image"),
    ],
)
def test_an_impossible_long_tail_is_refused(dataset, imbalance, words):
    with pytest.raises(DataError, match=words):
        datasets.long_tailed(dataset, imbalance)


GOOD = made([2, 3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": GOOD.images.astype(np.float32)}, r"float32\[5, 4, 4, 3\] instead of uint8"),
        ({"images": GOOD.images[0]}, r"uint8\[4, 4, 3\]"),
        ({"images": GOOD.images[..., :2]}, r"uint8\[5, 4, 4, 2\]"),
        ({"labels": GOOD.labels.astype(np.int64)}, r"int64\[5\] instead of int32\[5\]"),
        ({"labels": GOOD.labels[:4]}, r"int32\[4\] instead of int32\[5\]"),
        ({"labels": GOOD.labels + 1}, r"label 2 outside 0..1"),
        ({"labels": GOOD.labels - 1}, r"label -1 outside 0..1"),
        ({"labels": GOOD.labels * 0}, "class 'c1' has no image"),
        ({"class_names": ("a", "a")}, "class name 'a' is empty or not unique"),
        ({"class_names": ("a", "")}, "class name '' is empty or not unique"),
        ({"images": GOOD.images[:0], "labels": GOOD.labels[:0]}, "no images"),
    ],
)
def test_validate_names_what_is_wrong(change, words):
    datasets.validate(GOOD, "here")
    with pytest.raises(DataError, match=f"here: .*{words}"):
        datasets.validate(dataclasses.replace(GOOD, **change), "here")


def test_an_unknown_name_gets_a_hint(tmp_path):
    write_archive(tmp_path / "pets.tar.xz", pets(1))
    for wrong, right in (("cifra10", "cifar10"), ("pet", "pets")):
        with pytest.raises(DataNotFoundError, match=f"did you mean {right!r}") as caught:
            load(wrong, tmp_path)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataNotFoundError, match="no such folder"):
        load("pets", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "holds"),
    [
        ([f"{name}/1.png" for name in "abcd"], "a, b, c, ..."),
        (["training/a/1.png", "validation/a/1.png", ".hidden/1.png"], "training, validation"),
        (["pets/train/a/1.png", "pets/val/a/1.png"], "pets"),
        ([], "nothing"),
    ],
)
def test_a_folder_without_splits_is_said_to_lack_them_and_what_it_holds(tmp_path, files, holds):
    (tmp_path / "pets").mkdir()
    write_folder(tmp_path / "pets", dict.fromkeys(files, b""))
    with pytest.raises(DataNotFoundError) as caught:
        load("pets", tmp_path)
    assert str(caught.value) == (
        f"data.name=pets: {tmp_path}/pets has no train/CLASS/IMAGE and no val/CLASS/IMAGE; it "
        f"holds {holds}"
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digits", {"split": "validation"}, "split='validation': must be one of train, test"),
        ("digits", {"on_error": "ignore"}, "on_error='ignore': must be one of stop, skip"),
        ("", {}, "name is empty"),
        ("tfds:", {}, "name is empty"),
    ],
)
def test_bad_arguments_are_named(tmp_path, name, options, words):
    with pytest.raises(ValueError, match=words):
        load(name, tmp_path, **options)


def test_a_dataset_is_as_long_as_its_images_and_knows_its_channels():
    assert len(GOOD) == 5
    assert GOOD.channels == 3
    part = GOOD.subset(np.array([4, 0]))
    assert part.labels.tolist() == [1, 0]
    assert len(part) == 2
    assert part.class_names == GOOD.class_names


def test_a_test_split_may_lack_classes_and_one_warning_names_them(tmp_path, caplog):
    files = {f"train/{name}/1.png": encoded(3) for name in "abcdefgh"}
    write_folder(tmp_path / "letters", files | {"val/c/1.png": encoded(7)})
    write_archive(tmp_path / "packed.zip", files | {"val/c/1.png": encoded(7)})
    for name in ("letters", "packed"):
        test = load(name, tmp_path, "test")
        assert test.class_names == load(name, tmp_path).class_names == tuple("abcdefgh")
        assert test.labels.tolist() == [2]
        load(name, tmp_path, "test")
        assert caplog.messages == [
            f"{name} (test): no image of 7 of 8 classes: 'a', 'b', 'd', 'e', 'f' and 2 more"
        ]
        caplog.clear()


def test_one_class_is_a_warning(tmp_path, caplog):
    write_folder(tmp_path / "alone", {f"{s}/a/1.png": encoded(3) for s in ("train", "val")})
    load("alone", tmp_path)
    load("alone", tmp_path, "test")
    assert caplog.messages == ["alone (train): only one class: nothing to learn"]


def test_an_error_of_the_system_names_the_file(tmp_path, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(datasets.image_folder, "is_image_folder", locked)
    with pytest.raises(DataError, match=r"/pets cannot be read \(Permission denied\)"):
        load("pets", tmp_path)


def test_the_data_folder_is_the_fields_the_variables_or_data(monkeypatch):
    monkeypatch.setenv("DATA_DIR", "/there")
    assert [datasets.data_dir(text) for text in ("/here", "")] == [Path("/here"), Path("/there")]
    monkeypatch.delenv("DATA_DIR")
    assert datasets.data_dir("") == Path("data")
    assert datasets.data_dir("~/x") == Path.home() / "x"


def test_importing_needs_neither_tensorflow_nor_its_datasets():
    code = (
        "import sys; from dnrt_jax.data import datasets;"
        "print({'tensorflow', 'tensorflow_datasets', 'sklearn', 'grain'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
