"""Tensors that stay in their file until somebody wants them: so many bytes at a place, and how they are laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from pti_core.generators.checkpoints.plain_pickle import PickleError

MAX_DIMS = 8


@dataclass(frozen=True)
class Storage:
    """The values that tensors share."""

    start: int  # of the first value in the file, bytes
    count: int
    dtype: torch.dtype

    def locate(self, file: IO[bytes]) -> Storage:
        """Itself."""
        return self


class Located(Protocol):
    """What knows where its values are, perhaps only after a look into the file."""

    def locate(self, file: IO[bytes]) -> Storage:
        """The place. PickleError where there is no storage."""
        ...


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in the file."""

    storage: Located
    offset: int  # in values, as are the strides
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, file: IO[bytes]) -> Tensor:
        """The tensor, in memory of its own; nothing else of its storage is read.

        PickleError where it reaches beyond its storage, or is larger than it (values shown many times).
        """
        storage, count = self.storage.locate(file), math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if count and (last >= storage.count or count > storage.count):
            raise PickleError(f"a tensor of shape {list(self.shape)} in a storage of {storage.count} values")
        if not count:
            return torch.empty(self.shape, dtype=storage.dtype)
        raw = torch.empty((last + 1 - self.offset) * storage.dtype.itemsize, dtype=torch.uint8)
        file.seek(storage.start + self.offset * storage.dtype.itemsize)
        if file.readinto(raw.numpy()) != len(raw):  # type: ignore[attr-defined]
            raise PickleError("the file ends too early")
        found = raw.view(storage.dtype).as_strided(self.shape, self.stride)
        return (
            found.contiguous()
            if count == last + 1 - self.offset
            else found.clone(memory_format=torch.contiguous_format)
        )


def make_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    """What stands for torch's `_rebuild_tensor_v2`. PickleError for numbers that no tensor has."""
    if not hasattr(storage, "locate") or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise PickleError("a tensor without a storage or a shape")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MAX_DIMS or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise PickleError("a tensor of an impossible size")
    return LazyTensor(storage, offset, size, stride)


def make_parameter(data: Any, *_: Any) -> LazyTensor:
    """What stands for torch's `_rebuild_parameter`."""
    if not isinstance(data, LazyTensor):
        raise PickleError("a parameter without a tensor")
    return data


def make_table(*_: Any) -> dict[str, Any]:
    """What stands for dicts of other names; their items follow, one by one, as with any dict."""
    return {}
