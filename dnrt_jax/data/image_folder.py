"""Image folders `NAME/{train,val|test}/CLASS/IMAGE`, on disk or inside one archive.

Archives are read without extracting them, so no member can write outside the folder.
"""

import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np

from dnrt_jax.data.decode import BrokenImage
from dnrt_jax.data.reading import DAMAGED_ARCHIVE, reading
from dnrt_jax.data.source import Example
from dnrt_jax.runtime.errors import DataError, DataNotFoundError

ARCHIVES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".zip")
# `val` comes first, as in ImageNet, whose `test` has no labels.
SPLITS = {"train": ("train",), "test": ("val", "test")}
SPLIT_FOLDERS = ("train", "val", "test")
LITTER = ("Thumbs.db", "desktop.ini", "__MACOSX")
MAX_BYTES = 2**28


class Entry(NamedTuple):
    """A class folder (`file` is empty) or a file below one."""

    split: str
    class_name: str
    file: str


class ImageFolder:
    """One split of an image folder, with files at any depth, sorted by class and name.

    Hidden files and files of file managers are ignored, links are followed. The classes are those
    of the training split, if there is one; the test split may lack some of them.

    Raises:
      DataNotFoundError: if the folder does not have the split, or the split has no classes.
      DataError: if a folder cannot be listed, a class has no training images, or only the test
        split has it. Indexing raises BrokenImage for a file that cannot be read.
    """

    channels = 3

    def __init__(self, root: Path, split: str):
        classes = (Entry(f, name, "") for f in SPLIT_FOLDERS for name in _folders(root / f))
        folder, self.class_names = _classes(classes, split, root)
        files = (
            Entry(folder, name, str((Path(path) / file).relative_to(root / folder / name)))
            for name in self.class_names
            for path, found in _walk(root / folder / name)
            for file in found
        )
        self.folder = root / folder
        with reading(self.folder):
            found, labels = _files(files, self.class_names, self.folder, split)
        # Compact arrays, as ImageNet's list of names is sent to every worker of the loader.
        self.files = np.array([os.fsencode(f"{f.class_name}/{f.file}") for f in found])
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self.folder, os.fsdecode(bytes(self.files[index])))
        try:
            with open(path, "rb") as file:
                return Example(path, file.read(), int(self.labels[index]))
        except OSError as error:
            raise BrokenImage(f"{path}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.folder)!r})"


class Archive:
    """One split of an image folder in an archive, read into memory on first use, still encoded.

    The content may be in one top-level folder; links are ignored.

    Raises (on first use):
      DataNotFoundError: if the archive does not have the split, or the split has no classes.
      DataError: as for `ImageFolder`; for a damaged archive, or absolute names or `..` in it.
    """

    channels = 3

    def __init__(self, path: Path, split: str):
        self.path, self.split = path, split

    @cached_property
    def _content(self) -> tuple[tuple[str, ...], list[Example]]:
        read = _read_zip if self.path.suffix == ".zip" else _read_tar
        members: dict[Entry, bytes] = {}
        with reading(self.path, DAMAGED_ARCHIVE):
            members.update(read(self.path, SPLITS[self.split]))
        folder, class_names = _classes(members, self.split, self.path)
        mine = (entry for entry in members if entry.split == folder and entry.file)
        files, labels = _files(mine, class_names, f"{self.path}:{folder}", self.split)
        return class_names, [
            Example(f"{self.path}:{'/'.join(file)}", members[file], label)
            for file, label in zip(files, labels, strict=True)
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._content[0]

    @property
    def labels(self) -> np.ndarray:
        return np.array([example.label for example in self._content[1]], np.int32)

    def __len__(self) -> int:
        return len(self._content[1])

    def __getitem__(self, index: int) -> Example:
        return self._content[1][index]

    def __repr__(self) -> str:
        return f"Archive({str(self.path)!r}, {self.split!r})"


def find_archive(name: str, data_dir: Path) -> Path | None:
    """The first existing file of `DATA_DIR/NAME.tar[.xz|.gz]`, `.tgz` and `.zip`."""
    return next((p for suffix in ARCHIVES if (p := data_dir / f"{name}{suffix}").is_file()), None)


def is_image_folder(root: Path) -> bool:
    """Whether `root` has the folder of a split."""
    return any((root / folder).is_dir() for folder in SPLIT_FOLDERS)


def _folders(parent: Path) -> list[str]:
    if not parent.is_dir():
        return []
    return [path.name for path in parent.iterdir() if path.is_dir() and not _litter(path.name)]


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # the test split may lack classes
        raise error


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below with the names of its files, but hidden folders and links to above."""
    for path, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [f for f in folders if not (_litter(f) or _leads_back(Path(path), f))]
        yield path, files


def _leads_back(folder: Path, name: str) -> bool:
    """Whether `name` in `folder` is a link to it or above it."""
    link = folder / name
    return link.is_symlink() and folder.resolve().is_relative_to(link.resolve())


def _litter(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _classes(entries: Iterable[Entry], split: str, where: Path) -> tuple[str, tuple[str, ...]]:
    """The folder name of `split`, and the sorted class names of the training split."""
    classes: dict[str, set[str]] = {}
    for entry in entries:
        classes.setdefault(entry.split, set()).add(entry.class_name)
    folder = {s: next((f for f in SPLITS[s] if f in classes), None) for s in SPLITS}
    if (mine := folder[split]) is None:
        wanted = " or ".join(f"{f}/CLASS/IMAGE" for f in SPLITS[split])
        raise DataNotFoundError(f"{where} has no images of the {split} split: expected {wanted}")
    train, test = folder["train"], folder["test"]
    if train and test and (odd := sorted(classes[test] - classes[train])):
        raise DataError(
            f"{where}: class {odd[0]!r} is in {test}/ only ({len(odd)} such); give it images in"
            f" {train}/, or remove it from {test}/"
        )
    return mine, tuple(sorted(classes[train or mine]))


def _files(
    entries: Iterable[Entry], class_names: tuple[str, ...], where: Path | str, split: str
) -> tuple[list[Entry], list[int]]:
    files = sorted(entry for entry in entries if not _litter(Path(entry.file).name))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[entry.class_name] for entry in files]
    missing = sorted(set(class_names) - {entry.class_name for entry in files})
    if missing and split == "train":
        raise DataError(
            f"{where}: class {missing[0]!r} has no image ({len(missing)} such);"
            " give it images, or remove the class from every split"
        )
    if not files:
        raise DataError(f"{where}: no images")
    return files, labels


def _read_tar(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[Entry, bytes]]:
    with tarfile.open(path, tarinfo=_StrictTarInfo) as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()):
                continue
            entry = _entry(member.name, member.isdir(), path)
            if entry is None:
                continue
            data = b""
            if entry.split in wanted and (file := archive.extractfile(member)):
                data = file.read(_bounded(member.size, member.name, path))
            yield entry, data
        while archive.fileobj and archive.fileobj.read(2**20):
            pass  # to the end, to verify the checksum of compressed archives


class _StrictTarInfo(tarfile.TarInfo):
    """Reports damaged headers, which `tarfile` treats as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"truncated, or a bad header: {error}") from None


def _read_zip(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[Entry, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            entry = _entry(member.filename, member.is_dir(), path)
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if entry is None or is_link:
                continue
            data = b""
            if entry.file and entry.split in wanted:
                _bounded(member.file_size, member.filename, path)
                data = archive.read(member)
            yield entry, data


def _entry(name: str, is_folder: bool, archive: Path) -> Entry | None:
    """Parses `[TOP/]SPLIT/CLASS[/.../FILE]`; None for anything else."""
    path = PureWindowsPath(name)  # accepts both kinds of slashes
    if ".." in path.parts or path.root or path.drive:
        raise DataError(
            f"{archive}: member {name!r} points outside the archive; do not trust this file"
        )
    parts = path.parts if path.parts[:1] and path.parts[0] in SPLIT_FOLDERS else path.parts[1:]
    if len(parts) < 3 - is_folder or parts[0] not in SPLIT_FOLDERS or any(map(_litter, parts)):
        return None
    return Entry(parts[0], parts[1], "" if is_folder else "/".join(parts[2:]))


def _bounded(size: int, name: str, archive: Path) -> int:
    if size > MAX_BYTES:
        raise DataError(f"{archive}: member {name!r} is {size} bytes long, too long for an image")
    return size
