import io
import os
import tarfile

import numpy as np
import pytest
from making import encoded, pets, write_archive, write_folder

from dnrt_jax.data import cache, datasets, decode, image_folder
from dnrt_jax.data.source import Subset
from dnrt_jax.runtime.errors import DataError, DataNotFoundError

ARCHIVES = ["pets.tar", "pets.tar.xz", "pets.tar.gz", "pets.tgz", "pets.zip"]


def load(root, split="train", name="pets", **options):
    return datasets.load(name, root, split, **{"image_size": 6, **options})


def same(a, b) -> bool:
    return (
        np.array_equal(a.images, b.images)
        and np.array_equal(a.labels, b.labels)
        and a.class_names == b.class_names
    )


def test_a_folder_is_read_in_order_of_class_and_file(tmp_path):
    write_folder(tmp_path / "pets", pets())
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.class_names == ("cat", "dog")
    assert train.images.shape == (6, 6, 6, 3)
    assert train.labels.dtype == np.int32
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 50, 51, 52]
    assert test.images[:, 0, 0, 0].tolist() == [100, 101, 102, 150, 151, 152]


@pytest.mark.parametrize("top", ["", "./", "pets-v2/"])
@pytest.mark.parametrize("archive", ARCHIVES)
def test_an_archive_equals_its_folder(tmp_path, archive, top):
    write_folder(tmp_path / "folder" / "pets", pets())
    backwards = dict(reversed(pets().items()))
    write_archive(tmp_path / archive, backwards, top)
    for split in ("train", "test"):
        assert same(load(tmp_path, split), load(tmp_path / "folder", split))


def test_test_is_read_where_there_is_no_val_and_after_it_where_there_is(tmp_path):
    files = pets()
    other = {n.replace("val", "test"): encoded(9) for n in files if n.startswith("val")}
    write_folder(tmp_path / "pets", files | other)
    assert load(tmp_path, "test").images.max() > 9
    train = {n: data for n, data in files.items() if n.startswith("train")}
    write_folder(tmp_path / "two", train | other)
    assert (load(tmp_path, "test", "two").images == 9).all()


def test_hidden_files_and_nested_folders(tmp_path):
    files = pets(1) | {"train/cat/deep/er/1.png": encoded(7), "train/cat/.DS_Store": b"x"}
    files |= {"train/dog/Thumbs.db": b"x", "train/.cache/1.png": b"x", "train/notes.txt": b"x"}
    files |= {"train/cat/.ipynb_checkpoints/0.png": encoded(8)}
    write_archive(tmp_path / "packed.zip", files | {"__MACOSX/train/cat/._1.png": b"x"})
    write_folder(tmp_path / "pets", files)
    (tmp_path / "pets/train/cat/deep/above").symlink_to("..")
    assert load(tmp_path).images[:, 0, 0, 0].tolist() == [0, 7, 50]
    assert same(load(tmp_path), load(tmp_path, name="packed"))


def test_images_of_several_sizes_become_evaluation_squares(tmp_path, caplog):
    write_folder(tmp_path / "pets", pets() | {"train/dog/9.png": encoded(3, (20, 30))})
    train = load(tmp_path, image_size=32)
    assert "pets (train): the images have several sizes, so each becomes its centre" in caplog.text
    assert train.images.shape == (7, 36, 36, 3)
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 50, 51, 52, 3]


def test_one_size_is_kept_whatever_the_model_sees(tmp_path):
    write_folder(tmp_path / "pets", pets(size=(5, 9)))
    assert load(tmp_path, image_size=224).images.shape == (6, 5, 9, 3)


def test_photographs_that_would_fill_the_memory_become_squares(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "pets", pets(size=(20, 30)))
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 5000)
    assert load(tmp_path, image_size=7).images.shape == (6, 8, 8, 3)
    assert "would take more than" in caplog.text
    assert load(tmp_path, image_size=24).images.shape == (6, 20, 30, 3)  # never larger


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"val/cat/1.png": encoded()}, DataNotFoundError, "no images of the train split"),
        ({"train/1.png": encoded()}, DataNotFoundError, "no images of the train split"),
        (pets() | {"val/owl/1.png": encoded()}, DataError, "'owl' is in val/ only"),
        (pets() | {"train/owl/.x": b"", "val/owl/1.png": b"x"}, DataError, "'owl'"),
        (pets() | {"train/cat/bad.png": b""}, DataError, "train/cat/bad.png: empty file"),
        (pets() | {"train/cat/bad.png": b"text"}, DataError, "train/cat/bad.png: not an image"),
        (
            pets() | {"train/dog/x.jpg": encoded(kind="JPEG")[:-30]},
            DataError,
            "train/dog/x.jpg: broken",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_name(tmp_path, packed, files, error, words):
    if packed:
        write_archive(tmp_path / "pets.tar", files)
    else:
        write_folder(tmp_path / "pets", files)
    with pytest.raises(error, match=words) as caught:
        load(tmp_path)
    assert "pets" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_source_knows_its_labels_and_a_part_of_it_is_a_source(tmp_path, packed):
    if packed:
        write_archive(tmp_path / "pets.tar", pets())
    else:
        write_folder(tmp_path / "pets", pets())
    whole = datasets.find("pets", tmp_path, "train")
    assert whole.labels.dtype == np.int32
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1]
    part = Subset(whole, np.array([5, 1], np.int32))
    assert (len(part), part.channels, part.class_names) == (2, 3, ("cat", "dog"))
    assert part.labels.tolist() == [1, 0]
    assert part[0] == whole[5]
    assert repr(part) == f"Subset of 2 of {whole!r}"
    decoded = datasets.decode_all(part, "part", 6, "stop")
    assert decoded.images[:, 0, 0, 0].tolist() == [52, 1]


def test_a_class_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", pets())
    scan = image_folder.os.scandir

    def locked(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(image_folder.os, "scandir", locked)
    with pytest.raises(DataError, match=r"train/dog cannot be read \(Permission denied\)"):
        load(tmp_path)


def test_a_file_that_cannot_be_opened_is_a_broken_image(tmp_path):
    write_folder(tmp_path / "pets", pets())
    (tmp_path / "pets" / "train" / "cat" / "3.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cat/3\.png: No such file.*data\.on_error=skip"):
        load(tmp_path)
    assert len(load(tmp_path, on_error="skip")) == 6


def test_an_empty_class_folder_is_named(tmp_path):
    write_folder(tmp_path / "pets", pets())
    for split in ("train", "val"):
        (tmp_path / "pets" / split / "owl").mkdir()
    with pytest.raises(DataError, match="class 'owl' has no image"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../train/cat/1.png", "train/cat/../../../1.png", "/train/cat/1.png"]
)
@pytest.mark.parametrize("archive", ["pets.tar", "pets.zip"])
def test_an_archive_that_points_outside_is_refused(tmp_path, archive, name):
    write_archive(tmp_path / archive, pets() | {name: encoded()})
    with pytest.raises(DataError, match="points outside"):
        load(tmp_path)


def test_links_in_an_archive_are_passed_over(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(77))
    path = write_archive(tmp_path / "pets.tar", pets())
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"train/cat/link{kind!r}.png")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    assert len(load(tmp_path).labels) == 6


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_truncated_archive_is_named(tmp_path, archive):
    path = write_archive(tmp_path / archive, pets(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{archive} cannot be read"):
        load(tmp_path)


def test_a_member_too_long_for_an_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_BYTES", 10)
    for archive in ("pets.tar", "others.zip"):
        write_archive(tmp_path / archive, pets())
        with pytest.raises(DataError, match="too long for an image"):
            load(tmp_path, name=archive.split(".")[0])


def test_skip_counts_and_warns_and_has_a_cap(tmp_path, caplog):
    files = pets(100) | {"train/cat/a.png": b"", "train/dog/b.png": b"text"}
    write_folder(tmp_path / "pets", files)
    assert len(load(tmp_path, on_error="skip").labels) == 200
    assert "skipped 2 broken images" in caplog.text
    write_folder(tmp_path / "pets", {"train/dog/c.png": b"text"})
    with pytest.raises(DataError, match="3 of 203 images are broken, more than 1%"):
        load(tmp_path, on_error="skip")


def test_one_broken_image_may_be_skipped_in_a_small_set_but_not_the_only_one(tmp_path):
    write_folder(tmp_path / "pets", pets(5) | {"train/cat/a.png": b""})
    assert len(load(tmp_path, on_error="skip")) == 10
    write_folder(tmp_path / "pets", {"train/cat/b.png": b""})
    with pytest.raises(DataError, match="2 of 12 images are broken"):
        load(tmp_path, on_error="skip")
    write_folder(tmp_path / "alone", {"train/cat/a.png": b""})
    with pytest.raises(DataError, match="1 of 1 images are broken"):
        load(tmp_path, name="alone", on_error="skip")


def test_the_second_start_reads_the_cache_and_a_new_archive_does_not(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "pets.zip", pets())
    first = load(tmp_path)
    monkeypatch.setattr(decode, "decode", None)
    assert same(load(tmp_path), first)
    monkeypatch.undo()
    path.unlink()
    write_archive(path, pets(4))
    assert len(load(tmp_path).labels) == 8


def test_a_replaced_archive_leaves_one_cache_a_split_and_size(tmp_path):
    kept = lambda: sorted(path.name for path in (tmp_path / cache.FOLDER).iterdir())
    path, other = tmp_path / "pets.zip", tmp_path / "pets.zip-train-1-2.zip"
    for archive in (path, other):
        write_archive(archive, pets())
    for split, size in (("train", 6), ("train", 8), ("test", 6)):
        load(tmp_path, split, image_size=size)
    load(tmp_path, name="pets.zip-train-1-2")
    before = kept()
    assert len(before) == 4
    os.utime(path, (1, 1))
    load(tmp_path)
    after = kept()
    assert len(after) == 4
    assert len(set(before) & set(after)) == 3


def test_a_damaged_or_interrupted_cache_is_not_read(tmp_path):
    write_archive(tmp_path / "pets.zip", pets())
    first = load(tmp_path)
    (kept,) = (tmp_path / cache.FOLDER).iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 4] ^= 255
    for damaged in (bytes(data), kept.read_bytes()[:100], b""):
        kept.write_bytes(damaged)
        assert same(load(tmp_path), first)


def test_a_read_only_folder_needs_no_cache(tmp_path):
    write_archive(tmp_path / "pets.zip", pets())
    tmp_path.chmod(0o555)
    try:
        assert len(load(tmp_path).labels) == 6
        assert not (tmp_path / cache.FOLDER).exists()
    finally:
        tmp_path.chmod(0o755)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_archive(tmp_path / "pets.zip", pets())

    def full(file: io.BufferedWriter, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(load(tmp_path).labels) == 6
    assert list((tmp_path / cache.FOLDER).iterdir()) == []


def test_nothing_cached_where_images_were_skipped(tmp_path):
    write_archive(tmp_path / "pets.zip", pets(100) | {"train/cat/a.png": b""})
    load(tmp_path, on_error="skip")
    with pytest.raises(DataError, match=r"a\.png: empty file"):
        load(tmp_path)
