"""Reads folders prepared by tensorflow-datasets, `DATA_DIR/NAME[/CONFIG]/VERSION`, without
TensorFlow, in array_record or tfrecord format."""

import re
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dnrt_jax.data.decode import BrokenImage
from dnrt_jax.data.reading import one_line, reading
from dnrt_jax.data.source import Example
from dnrt_jax.runtime.errors import DataError, DataNotFoundError

SPLITS = {"train": ("train",), "test": ("test", "validation")}
VERSION = re.compile(r"\d+\.\d+\.\d+")


class Prepared:
    """One split of a prepared folder: a sequence of examples with encoded images.

    Raises:
      DataNotFoundError: if the data set does not have the split, or a file is missing.
      DataError: if the features have no image and class label, or files cannot be read. Indexing
        raises BrokenImage for a record that cannot be read.
    """

    channels = 3

    def __init__(self, folder: Path, split: str):
        import tensorflow_datasets as tfds

        self.folder = folder
        try:
            info = tfds.builder_from_directory(folder).info
        except Exception as error:  # damaged JSON files raise anything
            raise DataError(f"{folder} is damaged ({one_line(error)}); prepare it again") from None
        self.features: Any = info.features
        keys: Any = info.supervised_keys or ("image", "label")
        self.image_key, self.label_key = keys[0], keys[-1]
        found = dict(self.features)
        image, label = found.get(self.image_key), found.get(self.label_key)
        if not isinstance(image, tfds.features.Image) or not isinstance(
            label, tfds.features.ClassLabel
        ):
            raise DataError(f"{folder} is not for image classification: it holds {list(found)}")
        self.class_names = tuple(label.names)
        self.decoders = {self.image_key: tfds.decode.SkipDecoding()}

        known = [name for name in SPLITS[split] if name in info.splits]
        if not known:
            wanted = " or ".join(SPLITS[split])
            raise DataNotFoundError(
                f"{folder} has no split {wanted}, only {', '.join(info.splits)}"
            )
        self._open(info, known[0])
        if len(known) > 1 and len(self) and self[0].label < 0:
            self._open(info, known[1])  # ImageNet's test split has no labels

    def _open(self, info: Any, split: str) -> None:
        self.split, folder, shards = split, self.folder, info.splits[split]
        file_format = info.file_format.value if info.file_format else "unknown"
        self.records = _records(folder, file_format, [str(path) for path in shards.filepaths])
        if len(self.records) != shards.num_examples:
            raise DataError(
                f"{folder}: {self.split} has {len(self.records)} records instead of"
                f" {shards.num_examples}; prepare it again"
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        name = f"{self.folder}:{self.split}[{index}]"
        try:
            record = self.records[index]
            example = self.features.deserialize_example_np(record, decoders=self.decoders)
            return Example(name, example[self.image_key], int(example[self.label_key]))
        except MemoryError:
            raise
        except Exception as error:  # damaged records raise anything
            raise BrokenImage(f"{name} cannot be read ({one_line(error)})") from None

    @property
    def labels(self) -> np.ndarray:
        """i32[N]. The first access reads all records, without decoding images."""
        return self._labels

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.array([self[index].label for index in range(len(self))], np.int32)

    def __repr__(self) -> str:
        return f"Prepared({str(self.folder)!r}, {self.split!r})"


def find(name: str, data_dir: Path) -> Path | None:
    """The newest prepared version of NAME, `DATASET[/CONFIG][:VERSION]`, in `data_dir`; or None."""
    folder = data_dir / name.replace(":", "/")
    found = [folder] if VERSION.fullmatch(folder.name) else folder.glob("*.*.*")
    # dataset_info.json is written last: without it, the preparation was interrupted.
    found = [
        path
        for path in found
        if VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()
    ]
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _records(folder: Path, file_format: str, paths: list[str]) -> Any:
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise DataNotFoundError(f"{missing[0]} is missing; prepare the data set again")
    if file_format == "tfrecord":
        return TFRecords(paths)
    if file_format == "array_record":
        return _array_records(folder, paths)
    raise DataError(
        f"{folder} holds {file_format} files; prepare it with file_format='array_record'"
    )


def _array_records(folder: Path, paths: list[str]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        records = ArrayRecordDataSource(paths)
        len(records)  # opens the files
        return records
    except Exception as error:  # damaged files raise anything
        raise DataError(f"{folder} is damaged ({one_line(error)}); prepare it again") from None


class TFRecords(Sequence):
    """Random access to the records of TFRecord files (length, crc, data, crc; little-endian).

    Raises:
      DataError: if a file is truncated or cannot be read.
    """

    def __init__(self, paths: list[str]):
        self.paths = paths
        index: list[tuple[int, int, int]] = []
        for number, path in enumerate(paths):
            with reading(path):
                index += [(number, start, length) for start, length in _spans(path)]
        # (file, start, length) of each record, as an array, since it is sent to every worker.
        self.spans = np.array(index, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index):
        number, start, length = self.spans[index].tolist()
        with open(self.paths[number], "rb") as file:
            file.seek(start)
            return file.read(length)


def _spans(path: str) -> Iterator[tuple[int, int]]:
    """Yields (start, length) of the data of each record."""
    size, position = Path(path).stat().st_size, 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if position + 16 + length > size:
                raise DataError(f"{path} is truncated; prepare the data set again")
            yield position + 12, length
            position += 16 + length
