"""Tiny data sets for the tests: encoded images, image folders and archives of them."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from dnrt_jax import convert, models
from dnrt_jax.data import graphs
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


def noise(rng: np.random.Generator, size: tuple[int, int] = (32, 32)) -> bytes:
    """A JPEG of random pixels; size is (height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def cifar_records(rng: np.random.Generator, labels: Sequence[int], columns: int) -> bytes:
    """A file of CIFAR's binary form: `columns` bytes of label, the last one told, and pixels."""
    records = rng.integers(0, 256, (len(labels), columns + 3072), np.uint8)
    records[:, columns - 1] = labels
    return records.tobytes()


def data_of_the_tables(root: Path) -> Path:
    """Every data set of the paper's tables and of the study, tiny, in the layouts of the docs."""
    rng = np.random.default_rng(0)
    tail = [0] * 80 + list(range(10))  # of five batches; a long tail needs 100 of the first class
    names = "\n".join(f"class{i}" for i in range(10))
    files = {f"data_batch_{i}.bin": cifar_records(rng, tail, 1) for i in range(1, 6)}
    files |= {
        "test_batch.bin": cifar_records(rng, range(10), 1),
        "batches.meta.txt": names.encode(),
    }
    write_folder(root / "cifar-10-batches-bin", files)
    names = "\n".join(f"class{i}" for i in range(100))
    files = {"train.bin": cifar_records(rng, range(100), 2), "fine_label_names.txt": names.encode()}
    write_folder(root / "cifar-100-binary", files | {"test.bin": cifar_records(rng, range(10), 2)})
    photographs = {
        f"{split}/n0{label}/{i}.JPEG": noise(rng, (40, 48))
        for split, count in (("train", 6), ("val", 2))
        for label in range(3)
        for i in range(count)
    }
    for name in ("imagenet100", "imagenet1k"):
        write_folder(root / name, photographs)
    np.savez(root / "dgraphfin.npz", **graphs.synthetic(nodes=400, edges=900, normal=150, fraud=40))
    with tarfile.open(root / "cifar10-jpeg.tar.xz", "w:xz") as archive:  # as `tar` makes it
        files = {
            f"{split}/class{label}/{1995 + i:04}.jpg": noise(rng)
            for split in ("train", "test")
            for label in range(10)
            for i in range(8)  # the study takes those below 2000
        }
        write_folder(root / "unpacked", files)
        for split in ("train", "test"):
            archive.add(root / "unpacked" / split, split)
    shutil.rmtree(root / "unpacked")
    return root


def data_of_the_docs(root: Path, weights: Path) -> Path:
    """Cora, Citeseer, DGraph-Fin and flowers, all tiny, and a tiny ViT's weights to start from."""
    rng = np.random.default_rng(0)
    photographs = {
        f"{split}/{label}/{i}.jpg": noise(rng, (40, 48))
        for split, count in (("train", 6), ("val", 2))
        for label in ("rose", "tulip")
        for i in range(count)
    }
    write_folder(root / "flowers", photographs)
    for name in ("cora", "citeseer", "dgraphfin"):
        made = graphs.synthetic(nodes=400, edges=900, normal=150, fraud=40)
        np.savez(root / f"{name}.npz", **made | {"x": np.abs(made["x"])})
    model = models.create(
        "vit_tiny_patch16_224", num_classes=3, act="gelu", embed_dim=16, depth=1, num_heads=2
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    state = convert.to_torch({"params": variables["params"]})
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, weights)
    return root
