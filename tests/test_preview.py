"""The preview shows what the transforms make of each class."""

import numpy as np
import pytest
from making import pets, write_folder
from PIL import Image

from dnrt_jax import preview
from dnrt_jax.config import default
from dnrt_jax.data import datasets


def a_config(**data):
    config = default()
    config.data.update({"mean": (0.5,), "std": (0.5,)} | data)
    return config


def test_every_class_has_its_own_images():
    config = a_config(name="digits", image_size=8, eval_resize=8, crop="none")
    grid = preview.rows(config)
    assert [row.name for row in grid] == list("0123456789")
    for split, field in (("train", "training"), ("test", "evaluation")):
        data = datasets.load("digits", "", split, image_size=8)
        for label, row in enumerate(grid):
            members = data.images[data.labels == label]
            for image in getattr(row, field):
                same = np.isclose(image * 255, members, atol=1e-3).all((1, 2, 3))
                assert same.any()


@pytest.mark.parametrize("streamed", [False, True])
def test_small_and_large_data_are_shown_alike(tmp_path, monkeypatch, streamed):
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 0 if streamed else 2**30)
    write_folder(tmp_path / "pets", pets(images=4))
    config = a_config(
        name="pets", dir=str(tmp_path), image_size=6, eval_resize=6, crop="random_resized"
    )
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    cat, dog = preview.rows(config)
    assert (cat.name, dog.name) == ("cat", "dog")
    # `pets` gives training cats the grey values 0 .. 3, dogs 50 .. 53; at evaluation 100 more.
    for row, first in ((cat, 0), (dog, 50)):
        greys = np.unique(np.rint(row.training * 255))
        assert set(greys) == {0, *range(first, first + 4)}  # two black ones fill up the six
        assert set(np.unique(np.rint(row.evaluation * 255))) <= set(range(100 + first, 104 + first))


def test_a_picture_of_an_unknown_kind_is_refused_before_the_work(capsys):
    with pytest.raises(SystemExit) as ended:
        preview.main(["--config=configs/digits.py", "--out=grid.bmp"])
    assert ended.value.code == 2
    assert "--out=grid.bmp: its name must end in .png, .pdf or .svg" in capsys.readouterr().err


def test_the_picture_has_room_for_every_row_and_its_folder_is_made(tmp_path):
    image = np.zeros((2, 4, 4, 1))
    few, many = ([preview.Row(f"class {i}", image, image[:1])] * i for i in (2, 45))
    sizes = []
    for grid in (few, many):
        preview.draw(grid, "title", tmp_path / "a" / "new" / "grid.png")
        with Image.open(tmp_path / "a" / "new" / "grid.png") as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > 2 * sizes[0][0]  # three columns of 15 rows
    assert sizes[1][1] > 4 * sizes[0][1]
