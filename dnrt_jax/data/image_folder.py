"""Image folders `NAME/{train,val|test}/CLASS/IMAGE`, on disk or inside one archive.

A source is a sequence of `Example`s with `class_names`: `datasets` decodes all of it, `loader`
streams it. Archives are read, never extracted, so no member can leave the folder.
"""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np

ARCHIVES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".zip")
# `val` comes first, as in ImageNet, whose `test` has no labels.
SPLITS = {"train": ("train",), "test": ("val", "test")}
SPLIT_FOLDERS = ("train", "val", "test")
LITTER = ("Thumbs.db", "desktop.ini", "__MACOSX")
MAX_BYTES = 2**28
# What the archive modules raise for damaged, encrypted or unreadable files.
UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
    OSError,
)


class Example(NamedTuple):
    name: str  # where the image lies, for messages
    data: bytes
    label: int


class Entry(NamedTuple):
    """A class folder (`file` is empty) or a file somewhere below one."""

    split: str
    class_name: str
    file: str


class ImageFolder:
    """One split of an image folder; files in order of class, then name; any depth below a class.

    Hidden files and what file managers leave behind are passed over, links are followed.

    Raises:
      FileNotFoundError: the folder has no such split, or no class in it.
      ValueError: an empty class, or classes that differ between the splits.
    """

    def __init__(self, root: Path, split: str):
        classes = (Entry(f, name, "") for f in SPLIT_FOLDERS for name in _folders(root / f))
        folder, self.class_names = _classes(classes, split, root)
        files = (
            Entry(folder, name, str((Path(path) / file).relative_to(root / folder / name)))
            for name in self.class_names
            for path, _, found in os.walk(root / folder / name, followlinks=True)
            for file in found
        )
        self.folder = root / folder
        found, labels = _files(files, self.class_names, self.folder)
        # Compact arrays: ImageNet's list of names goes to every worker of the loader.
        self.files = np.array([os.fsencode(f"{f.class_name}/{f.file}") for f in found])
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self.folder, os.fsdecode(bytes(self.files[index])))
        with open(path, "rb") as file:
            return Example(path, file.read(), int(self.labels[index]))

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.folder)!r})"


class Archive:
    """One split of an image folder inside an archive; at first use it is read into memory, its
    images still compressed. The content may lie under one top folder; links are passed over.

    Raises:
      FileNotFoundError: the archive has no such split, or no class in it.
      ValueError: as `ImageFolder`; a damaged archive; a member named with `..` or from the root.
    """

    def __init__(self, path: Path, split: str):
        self.path, self.split = path, split

    @cached_property
    def _content(self) -> tuple[tuple[str, ...], list[Example]]:
        read = _read_zip if self.path.suffix == ".zip" else _read_tar
        members: dict[Entry, bytes] = {}
        try:
            members.update(read(self.path, SPLITS[self.split]))
        except UNREADABLE as error:
            raise unreadable(self.path, error) from None
        folder, class_names = _classes(members, self.split, self.path)
        mine = (entry for entry in members if entry.split == folder and entry.file)
        files, labels = _files(mine, class_names, f"{self.path}:{folder}")
        return class_names, [
            Example(f"{self.path}:{'/'.join(file)}", members[file], label)
            for file, label in zip(files, labels, strict=True)
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._content[0]

    def __len__(self) -> int:
        return len(self._content[1])

    def __getitem__(self, index: int) -> Example:
        return self._content[1][index]


def unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"{path} cannot be read ({reason}); where it is damaged, fetch it again")


def find_archive(name: str, data_dir: Path) -> Path | None:
    """`DATA_DIR/NAME.tar[.xz|.gz]`, `.tgz` or `.zip`, the first that is there."""
    return next((p for suffix in ARCHIVES if (p := data_dir / f"{name}{suffix}").is_file()), None)


def is_image_folder(root: Path) -> bool:
    """Whether `root` has a split folder, and so is meant as image folder."""
    return any((root / folder).is_dir() for folder in SPLIT_FOLDERS)


def _folders(parent: Path) -> list[str]:
    if not parent.is_dir():
        return []
    return [path.name for path in parent.iterdir() if path.is_dir() and not _litter(path.name)]


def _litter(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _classes(entries: Iterable[Entry], split: str, where: Path) -> tuple[str, tuple[str, ...]]:
    """The folder that holds `split`, and its class names in order."""
    classes: dict[str, set[str]] = {}
    for entry in entries:
        classes.setdefault(entry.split, set()).add(entry.class_name)
    folder = {s: next((f for f in SPLITS[s] if f in classes), None) for s in SPLITS}
    mine, other = folder.pop(split), *folder.values()
    if mine is None:
        wanted = " or ".join(f"{f}/CLASS/IMAGE" for f in SPLITS[split])
        raise FileNotFoundError(f"{where} has no images of the {split} split: expected {wanted}")
    if other is not None and (odd := sorted(classes[mine] ^ classes[other])):
        only = mine if odd[0] in classes[mine] else other
        raise ValueError(
            f"{where}: classes differ between {mine}/ and {other}/: {odd[0]!r} is in {only}/ only"
            f" ({len(odd)} such); give both splits the same class folders"
        )
    return mine, tuple(sorted(classes[mine]))


def _files(
    entries: Iterable[Entry], class_names: tuple[str, ...], where: Path | str
) -> tuple[list[Entry], list[int]]:
    files = sorted(entry for entry in entries if not _litter(Path(entry.file).name))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[entry.class_name] for entry in files]
    if missing := sorted(set(class_names) - {entry.class_name for entry in files}):
        raise ValueError(
            f"{where}: class {missing[0]!r} has no image ({len(missing)} such);"
            " give it images, or remove the class from every split"
        )
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
            pass  # to the end, where the compressed forms have their checksum


class _StrictTarInfo(tarfile.TarInfo):
    """Only a block of zeros ends an archive; `tarfile` takes any damaged header for the end."""

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
    """`[TOP/]SPLIT/CLASS[/.../FILE]` as an Entry, None for anything else."""
    path = PureWindowsPath(name)  # reads both kinds of slash
    if ".." in path.parts or path.root or path.drive:
        raise ValueError(
            f"{archive}: member {name!r} points outside the archive; do not trust this file"
        )
    parts = path.parts if path.parts[:1] and path.parts[0] in SPLIT_FOLDERS else path.parts[1:]
    if len(parts) < 3 - is_folder or parts[0] not in SPLIT_FOLDERS or any(map(_litter, parts)):
        return None
    return Entry(parts[0], parts[1], "" if is_folder else "/".join(parts[2:]))


def _bounded(size: int, name: str, archive: Path) -> int:
    if size > MAX_BYTES:
        raise ValueError(f"{archive}: member {name!r} is {size} bytes long, too long for an image")
    return size
