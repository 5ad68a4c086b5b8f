"""Files of `torch.save`, zip archives and the older kind, as plain data with tensors that are still in the file.

torch's own reader is not asked: even with `weights_only=True` it reads or maps all of a training's file, and an older
file whole, where one network of three is wanted. Here the structure is read by `PlainUnpickler` and every tensor by
itself.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any

import torch

from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.lazy import Storage, make_parameter, make_table, make_tensor
from pti_core.generators.checkpoints.plain_pickle import Constructor, PickleError, PlainUnpickler

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's older files begin, storages in pickles too
MAX_PICKLE, MAX_RECORDS, MAX_STORAGES = 32 * 2**20, 20_000, 20_000
LOCAL_HEADER = 30  # bytes before a zip record's name
REFUSED = "it is refused, nothing of it was run"

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): make_tensor,
    ("torch._utils", "_rebuild_parameter"): make_parameter,
    ("collections", "OrderedDict"): make_table,
    ("argparse", "Namespace"): make_table,  # the options that a training keeps; left out
    ("torch", "Size"): lambda *items: items,
    ("torch", "device"): lambda *_: None,
    **{("torch", name): lambda *_: None for name in DTYPES},  # only named, never called
    **{("torch", str(dtype).removeprefix("torch.")): lambda *_: None for dtype in DTYPES.values()},
}
"""All that a file may name, and what stands for it."""


def read_torch(file: IO[bytes]) -> Any:
    """What a torch file holds: dicts, lists, numbers, texts and `LazyTensor`s. CheckpointError for anything else."""
    size = os.fstat(file.fileno()).st_size
    try:
        zipped = file.read(len(ZIP)) == ZIP
        file.seek(0)
        return _read_zip(file, size) if zipped else read_legacy(file, size)
    except CheckpointError:
        raise
    except PickleError as error:
        raise CheckpointError(f"a torch file with a damaged or hostile structure ({error}); {REFUSED}") from None
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError, struct.error) as error:  # of zipfile
        raise CheckpointError(f"a damaged or truncated torch file ({type(error).__name__}); fetch it again") from None


def _refuse(module: str, name: str) -> CheckpointError:
    return CheckpointError(f"a torch file that names {module}.{name}, more than plain weights need; {REFUSED}")


def _read_zip(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        packed = any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records)
        if packed or len(records) > MAX_RECORDS or sum(r.file_size for r in records) > size:
            raise CheckpointError(
                "a zip archive with compressed or overlapping records, which torch never writes; "
                "it is refused, unpack it if it holds a checkpoint"
            )
        pickles = [r for r in records if r.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise CheckpointError("a zip archive that is no torch file; give rosinality's .pt")
        folder = pickles[0].filename.removesuffix("data.pkl")
        known = {r.filename: r for r in records}
        order = known.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise CheckpointError("a torch file of a big-endian machine; load and save it again on this one")

        def storage(key: str, dtype: torch.dtype, count: int) -> Storage:
            record = known.get(f"{folder}data/{key}")
            if record is None or record.file_size != count * dtype.itemsize:
                raise PickleError(f"a storage of {count:,} values that is not in the file")
            return Storage(_start(file, record, size), count, dtype)

        with archive.open(pickles[0]) as pickle:
            return _unpickle(pickle, pickles[0].file_size, _Storages(storage))


def _start(file: IO[bytes], record: zipfile.ZipInfo, size: int) -> int:
    """Where the bytes of a record begin: its own header has a name and a field of any length before them."""
    place = file.tell()
    file.seek(record.header_offset)
    header = file.read(LOCAL_HEADER)
    file.seek(place)
    if len(header) != LOCAL_HEADER or not header.startswith(ZIP):
        raise PickleError("a storage without a header")
    start = record.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[26:]))
    if start + record.file_size > size:
        raise PickleError("a storage that reaches beyond the file")
    return start


def read_legacy(file: IO[bytes], end: int) -> Any:
    """The same of an older file, from where `file` stands to `end`: five pickles, then every storage's values.

    A storage alone gives a `Storage`. Raises PickleError or CheckpointError for anything else.
    """
    wanted: dict[str, tuple[torch.dtype, int]] = {}
    places: dict[str, Storage] = {}

    class Later:
        """A storage whose place is known when all of the structure has been read."""

        def __init__(self, key: str) -> None:
            self.key = key

        def locate(self, file: IO[bytes]) -> Storage:
            return places[self.key]

    def storage(key: str, dtype: torch.dtype, count: int) -> Later:
        if wanted.setdefault(key, (dtype, count)) != (dtype, count) or len(wanted) > MAX_STORAGES:
            raise PickleError("a storage with two lengths")
        return Later(key)

    if file.read(len(LEGACY)) != LEGACY:
        raise PickleError("another beginning than torch's")
    for _ in ("protocol", "system"):
        _unpickle(file, end)
    content = _unpickle(file, end, _Storages(storage))
    keys = _unpickle(file, end)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or not set(wanted) <= set(keys):
        raise PickleError("a storage that is not in the file")
    for key in keys:
        head = file.read(8)
        if len(head) != 8 or key not in wanted or key in places:
            raise PickleError("a storage that is not in the file, or in it twice")
        (found,), (dtype, count), start = struct.unpack("<q", head), wanted[key], file.tell()
        if found != count or start + count * dtype.itemsize > end:
            raise PickleError(f"a storage of {count:,} values, of which the file has another number")
        places[key] = Storage(start, count, dtype)
        file.seek(start + count * dtype.itemsize)
    return places[content.key] if isinstance(content, Later) else content


def _unpickle(file: IO[bytes], size: int, storages: Callable[[Any], Any] | None = None) -> Any:
    return PlainUnpickler(file, size, ALLOWED, _refuse, storages).load()


class _Storages:
    """What a torch pickle calls its storages: ('storage', type, key, device, number of values[, view])."""

    def __init__(self, make: Callable[[str, torch.dtype, int], Any]) -> None:
        self.make = make

    def __call__(self, name: Any) -> Any:
        """The storage of that name. PickleError for another kind of name."""
        if not isinstance(name, tuple) or len(name) not in (5, 6) or name[0] != "storage" or any(name[5:]):
            raise PickleError("a reference to something that is no storage")
        kind, key, count = name[1], name[2], name[4]
        if not isinstance(kind, Constructor) or kind.name not in DTYPES or not isinstance(key, str):
            raise PickleError("a storage of unknown type")
        if type(count) is not int or not 0 <= count < 2**40:
            raise PickleError("a storage of an impossible size")
        return self.make(key, DTYPES[kind.name], count)
