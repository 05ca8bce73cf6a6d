"""Tiny data sets for the tests: encoded images, image folders and archives of them."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from dnrt_jax.data.decode import TURNS


def encoded(value: int = 0, size: tuple[int, int] = (6, 6), kind: str = "PNG") -> bytes:
    """An image of one grey value; size is (height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def turned(upright: Image.Image, orientation: int, kind: str = "JPEG", **options) -> bytes:
    """`upright` as a camera that was held in another way stores it: turned, and with a note."""
    undo = {**TURNS, 6: TURNS[8], 8: TURNS[6]}
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif(orientation), **options)
    return buffer.getvalue()


def pets(images: int = 3, size: tuple[int, int] = (6, 6)) -> dict[str, bytes]:
    """Files of a data set with classes cat and dog; every image has a grey value of its own."""
    files = {}
    for i, split in enumerate(("train", "val")):
        for j, name in enumerate(("cat", "dog")):
            for k in range(images):
                value = 100 * i + 50 * j + k
                files[f"{split}/{name}/{k}.png"] = encoded(value, size)
    return files


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_archive(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(top + name, data)
        return path
    with tarfile.open(path, "w:" + path.suffix[1:].replace("tar", "").replace("tgz", "gz")) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
