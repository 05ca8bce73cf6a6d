"""The interface of a source: a sequence of examples with encoded images."""

from typing import NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    name: str  # location of the image, for messages
    data: bytes
    label: int


class Source(Protocol):
    """One split, to be loaded or streamed; implemented by `ImageFolder`, `Archive`, `Prepared`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """i32[N], read without decoding images; the first access may read all examples."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels of the decoded images: 3, see `decode.to_rgb`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Subset:
    """The examples of `source` at `indices` i32[n], in that order."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    @property
    def channels(self) -> int:
        return self.source.channels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]

    def __repr__(self) -> str:
        return f"Subset of {len(self)} of {self.source!r}"
