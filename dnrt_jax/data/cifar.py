"""CIFAR-10 and CIFAR-100 from their original archives (binary or python version), or downloaded.

The formats are described on https://www.cs.toronto.edu/~kriz/cifar.html. The python version is read
by a restricted unpickler that only builds NumPy arrays.
"""

import hashlib
import http.client
import io
import logging
import os
import pickle
import shutil
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnrt_jax.data.reading import DAMAGED_ARCHIVE, one_line, reading
from dnrt_jax.runtime.errors import DataError, DataNotFoundError, DownloadError

HOST = "https://www.cs.toronto.edu"
CONNECT_SECONDS = 5


class Form(NamedTuple):
    """One of the published versions of a CIFAR."""

    archive: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str


def _batches(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.format(i) for i in range(1, 6))


# Checksums: tensorflow-datasets' url_checksums (binary), Keras (python).
FORMS = {
    "cifar10": (
        Form(
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            "cifar-10-batches-bin",
            _batches("data_batch_{}.bin"), ("test_batch.bin",), "batches.meta.txt",
        ),
        Form(
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            "cifar-10-batches-py",
            _batches("data_batch_{}"), ("test_batch",), "batches.meta",
        ),
    ),
    "cifar100": (
        Form(
            "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            "cifar-100-binary",
            ("train.bin",), ("test.bin",), "fine_label_names.txt",
        ),
        Form(
            "cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            "cifar-100-python",
            ("train",), ("test",), "meta",
        ),
    ),
}  # fmt: skip
CLASSES = {"cifar10": 10, "cifar100": 100}


def find(name: str, data_dir: Path) -> tuple[Form, Path] | None:
    """Finds the extracted folder or the archive in DATA_DIR or DATA_DIR/NAME."""
    for form in FORMS[name]:
        for place in (data_dir, data_dir / name):
            if (place / form.folder).is_dir():
                return form, place / form.folder
            if (place / form.archive).is_file():
                return form, place / form.archive
    return None


def load(
    name: str, form: Form, path: Path, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads images uint8[N, 32, 32, 3], (fine) labels int32[N] and class names.

    Raises:
      DataNotFoundError: if a file is missing.
      DataError: for a wrong checksum, a damaged file, or unexpected content.
    """
    batches = form.train if split == "train" else form.test
    with reading(path, DAMAGED_ARCHIVE):
        files = _read(path, form, (*batches, form.names))
    binary = form.names.endswith(".txt")
    parse = _parse_binary if binary else _parse_python
    parts = [parse(files[batch], name, f"{path}/{batch}") for batch in batches]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int32)
    where = f"{path}/{form.names}"
    if binary:
        class_names = tuple(files[form.names].decode("utf-8", "replace").split())
    else:
        key = b"label_names" if name == "cifar10" else b"fine_label_names"
        found = _unpickle(files[form.names], where).get(key, [])
        class_names = tuple(n.decode("utf-8", "replace") for n in found)
    if len(set(class_names)) != CLASSES[name] or len(class_names) != CLASSES[name]:
        raise DataError(
            f"{where}: {len(set(class_names))} class names instead of {CLASSES[name]};"
            " fetch the data set again"
        )
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels, class_names


def reachable() -> bool:
    """Whether the download server can be reached within CONNECT_SECONDS, including DNS."""
    answers = []

    def ask() -> None:
        request = urllib.request.Request(HOST, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
                answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    # In a thread, as DNS look-ups have no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answers == [True]


def download(name: str, data_dir: Path) -> tuple[Form, Path]:
    """Downloads the binary archive to DATA_DIR; it is renamed when its checksum was verified.

    Raises:
      DownloadError: if the download failed.
      DataError: if the checksum is wrong or `data_dir` is not writable. No file is left behind.
    """
    form = FORMS[name][0]
    target = data_dir / form.archive
    url = f"{HOST}/~kriz/{form.archive}"
    logging.info("downloading %s to %s", url, target)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=data_dir, prefix=f".{form.archive}-")
    except OSError as error:
        raise DataError(f"{data_dir} cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=30) as response:
            shutil.copyfileobj(response, file, 2**20)
        _verify(Path(part), form, url)
        os.chmod(part, 0o644)
        os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{url}: the download to {data_dir} broke off ({one_line(error)}); try again,"
            " or put the file there yourself"
        ) from None
    finally:
        Path(part).unlink(missing_ok=True)
    return form, target


def _verify(path: Path, form: Form, where: Path | str) -> None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != form.sha256:
        raise DataError(
            f"{where}: SHA-256 {digest} instead of {form.sha256}: incomplete or altered;"
            " remove it and fetch it again"
        )


def _read(path: Path, form: Form, names: tuple[str, ...]) -> dict[str, bytes]:
    if path.is_dir():
        files = {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    else:
        _verify(path, form, path)
        wanted = {f"{form.folder}/{name}": name for name in names}
        with tarfile.open(path, "r|gz") as archive:
            files = {
                wanted[member.name]: archive.extractfile(member).read()  # type: ignore
                for member in archive
                if member.isreg() and member.name in wanted
            }
    for name in names:
        if name not in files:
            raise DataNotFoundError(f"{path}/{name} is missing; fetch the data set again")
    return files


def _parse_binary(data: bytes, name: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses records of a label (CIFAR-100: coarse, then fine) and 3 x 32 x 32 pixels."""
    columns = 1 if name == "cifar10" else 2
    if not data or len(data) % (columns + 3072):
        raise DataError(f"{where} is truncated ({len(data)} bytes); fetch the data set again")
    records = np.frombuffer(data, np.uint8).reshape(-1, columns + 3072)
    return records[:, columns:], _checked(records[:, columns - 1], name, where)


def _parse_python(data: bytes, name: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(data, where)
    pixels = np.asarray(batch.get(b"data"))
    labels = np.asarray(batch.get(b"labels" if name == "cifar10" else b"fine_labels"))
    if pixels.dtype != np.uint8 or pixels.shape != (labels.size, 3072) or labels.dtype.kind != "i":
        raise DataError(
            f"{where}: data {pixels.dtype}{list(pixels.shape)} and labels"
            f" {labels.dtype}{list(labels.shape)} instead of uint8[N, 3072] and N integers;"
            " fetch the data set again"
        )
    return pixels, _checked(labels, name, where)


def _checked(labels: np.ndarray, name: str, where: str) -> np.ndarray:
    if (outside := labels[(labels < 0) | (labels >= CLASSES[name])]).size:
        raise DataError(
            f"{where}: label {outside[0]} outside 0..{CLASSES[name] - 1}; fetch the data set again"
        )
    return labels


# The globals of pickled arrays. Python 3 pickles bytes for Python 2 with `_codecs.encode`.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return _ALLOWED[module, name]


def _unpickle(data: bytes, where: str) -> dict:
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged or malicious pickle may raise anything
        raise DataError(
            f"{where} cannot be read ({one_line(error)}); fetch the data set again"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{where} is not a dictionary; fetch the data set again")
    return content
