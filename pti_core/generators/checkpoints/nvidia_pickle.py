"""StyleGAN2 out of NVIDIA's pickles (stylegan2-ada-pytorch, stylegan3 repository) without running anything in them.

Such a file pickles whole modules together with their Python source, and NVIDIA's loader executes that source. Here
only an exact list of (module, name) is known, each to an inert stand-in: modules become records of their tensors and
constructor arguments, the source is ignored, and tensor storages, which are nested torch files, stay in the file
until they are wanted and are read with `weights_only=True`. From the records the project's own class is built.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pti_core.generators.checkpoints.architecture import MAPPING, SYNTHESIS, check_config
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.plain_pickle import Blob, PickleError, PlainUnpickler
from pti_core.generators.checkpoints.torch_file import LEGACY, check_legacy
from pti_core.generators.checkpoints.weights import fill
from pti_core.generators.stylegan2 import StyleGAN2

MAX_PARTS, MAX_NAME = 20_000, 200  # modules or tensors of a network (a 1024 generator has 250), letters of a name
IGNORED = ("use_fp16", "fp16_channels_last", "fused_modconv_default", "w_avg_beta")  # how it runs or was trained
ONLY = "generators of NVIDIA's own StyleGAN2 code can be read"
TF_CONVERT = "convert it with NVIDIA's stylegan2-ada-pytorch (legacy.py) first"


@dataclass(frozen=True)
class Storage:
    """The bytes of a nested torch file with the values of a tensor."""

    data: bytes | Blob

    def read(self, file: BinaryIO) -> Tensor:
        """Its values, one-dimensional. PickleError for anything but one plain storage."""
        data = self.data.read(file) if isinstance(self.data, Blob) else self.data
        if not data.startswith(LEGACY):
            raise PickleError("a nested file that is no tensor storage")
        check_legacy(io.BytesIO(data), len(data))
        try:
            with warnings.catch_warnings():  # a damaged file makes torch warn before it makes it raise
                warnings.simplefilter("ignore")
                loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # the nested pickle can make torch raise nearly anything
            raise PickleError(f"a tensor storage that is not plain data ({type(error).__name__})") from None
        if not isinstance(loaded, torch.storage.TypedStorage):
            raise PickleError("a nested file that is no tensor storage")
        # Its own length and item access warn of TypedStorage's retirement; what lies under it does not.
        count = loaded._untyped_storage.nbytes() // loaded.dtype.itemsize
        return torch.empty(0, dtype=loaded.dtype).set_(loaded._untyped_storage, 0, (count,), (1,))


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, file: BinaryIO) -> Tensor:
        """The tensor, in memory of its own. PickleError where it reaches beyond its storage."""
        values = self.storage.read(file)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if math.prod(self.shape) and last >= len(values):
            raise PickleError(f"a tensor of shape {list(self.shape)} in a storage of {len(values)} values")
        found = values.as_strided(self.shape, self.stride, self.offset)
        return found if found.numel() == len(values) and found.is_contiguous() else found.clone()


@dataclass(frozen=True)
class Module:
    """An inert record of a pickled module."""

    class_name: str
    state: Mapping[str, Any]

    def part(self, name: str) -> Mapping[str, Any]:
        """A table of its state, empty where it has none."""
        found = self.state.get(name)
        return found if isinstance(found, dict) else {}

    def child(self, name: str) -> Module | None:
        """A sub-module by name."""
        found = self.part("_modules").get(name)
        return found if isinstance(found, Module) else None

    def tensors(self) -> dict[str, LazyTensor]:
        """All its parameters and buffers, by their names in a state dict.

        PickleError for more modules than a network has: a file may put one into another again and again.
        """
        found: dict[str, LazyTensor] = {}
        waiting, seen = [("", self)], 0
        while waiting:
            prefix, module = waiting.pop()
            seen += 1
            for group in ("_parameters", "_buffers"):
                tensors = {k: v for k, v in module.part(group).items() if isinstance(v, LazyTensor)}
                found |= {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
            children = {k: v for k, v in module.part("_modules").items() if isinstance(v, Module)}
            waiting += [(f"{prefix}{name}.", child) for name, child in children.items()]
            if max(seen + len(waiting), len(found)) > MAX_PARTS or len(prefix) > MAX_NAME:
                raise PickleError("far more modules or tensors than a generator has")
        return found


def _module(meta: Any) -> Module:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise PickleError("a persistent object that is no module")
    name = meta.get("class_name")
    return Module(name[:80] if isinstance(name, str) else "nameless module", meta["state"])


def _storage(data: Any) -> Storage:
    if not isinstance(data, bytes | Blob):
        raise PickleError("a tensor storage without bytes")
    return Storage(data)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise PickleError("a tensor without a storage or a shape")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise PickleError("a tensor of an impossible size")
    return LazyTensor(storage, offset, size, stride)


def _parameter(data: Any, *_: Any) -> LazyTensor:
    if not isinstance(data, LazyTensor):
        raise PickleError("a parameter without a tensor")
    return data


def _scalar(dtype: Any, data: Any = b"") -> float | int | None:
    formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    code = dtype[0] if isinstance(dtype, tuple) and dtype and isinstance(dtype[0], str) else None
    if not isinstance(data, bytes) or code not in formats or len(data) != struct.calcsize(formats[code]):
        return None
    value: float | int = struct.unpack(formats[code], data)[0]
    return value


def _table(*_: Any) -> dict[str, Any]:
    return {}  # its items follow, one by one, as with any dict


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): _table,
    ("dnnlib.util", "EasyDict"): _table,
    ("builtins", "set"): lambda *_: [],  # of `_non_persistent_buffers_set`, in pickles of protocol 3
    ("numpy", "dtype"): lambda *arguments: arguments,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
"""All that a file may name, and what stands for it: functions of this file, which make plain data."""


def _refuse(module: str, name: str) -> CheckpointError:
    if module.startswith(("dnnlib.tflib", "tfutil")):
        return CheckpointError(f"a StyleGAN pickle of the TensorFlow era; {TF_CONVERT}")
    return CheckpointError(
        f"a pickle that names {module}.{name}, which no StyleGAN2 file needs; it is refused, nothing of it was run"
    )


def load_nvidia(path: Path, source: str) -> tuple[StyleGAN2, dict[str, str]]:
    """The generator (`G_ema`, else `G`) of an NVIDIA pickle: float32, eval mode, without gradients; and no notes.

    Raises CheckpointError, naming `source`, for anything else.
    """
    try:
        with path.open("rb") as file:
            content = PlainUnpickler(file, path.stat().st_size, ALLOWED, _refuse).load()
            module = _find_generator(content)
            generator = _build(module)
            tensors = module.tensors()
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            fill(generator, shapes, lambda name: tensors[name].read(file), source)
            return generator, {}
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(f"{source}: ") else f"{source}: {text}") from None
    except (PickleError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{source}: damaged, truncated or no StyleGAN2 pickle ({reason}); fetch it again"
        ) from None


def _find_generator(content: Any) -> Module:
    found = content
    if isinstance(content, dict):
        found = content.get("G_ema") or content.get("G")
    if not isinstance(found, Module):
        keys = ", ".join(str(key)[:40] for key in list(content)[:5]) if isinstance(content, dict) else ""
        what = f"it holds {keys or 'nothing'}" if isinstance(content, dict) else f"it is a {type(content).__name__}"
        raise CheckpointError(f"a pickle without a generator (`G_ema` or `G`): {what}; give a network-snapshot pickle")
    if found.class_name != "Generator":
        raise CheckpointError(f"the pickled network is a {found.class_name}; a StyleGAN2 Generator was expected")
    synthesis, mapping = found.child("synthesis"), found.child("mapping")
    if synthesis is None or mapping is None:
        raise CheckpointError("a generator without mapping or synthesis; it is no StyleGAN2 and cannot be read")
    if synthesis.child("input") is not None:
        raise CheckpointError("a StyleGAN3 generator; only StyleGAN2 can be read (`--cfg stylegan2` there)")
    return found


def _build(module: Module) -> StyleGAN2:
    """An empty generator of the file's architecture."""
    networks: dict[str, dict[str, Any]] = {}
    for part, own in (("mapping", ("z_dim", "c_dim", "num_ws")), ("synthesis", ("img_resolution", "img_channels"))):
        child = module.child(part)
        assert child is not None
        networks[part] = {
            k: v for k, v in child.part("_init_kwargs").items() if k not in (*own, "w_dim", *IGNORED) and v is not None
        }
    if networks["mapping"].pop("activation", "lrelu") != "lrelu":
        raise CheckpointError(f"a mapping network with another activation than lrelu, which is not supported; {ONLY}")
    config: dict[str, Any] = {
        name: module.state.get(name) for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
    }
    unknown = [k for k in networks["mapping"] if k not in MAPPING] + [
        k for k in networks["synthesis"] if k not in SYNTHESIS
    ]
    if unknown:
        raise CheckpointError(f"an architecture that is not supported (the argument {str(unknown[0])[:60]}); {ONLY}")
    try:
        config |= {"mapping_kwargs": networks["mapping"], "synthesis_kwargs": networks["synthesis"]}
        check_config("stylegan2", config)
        with torch.device("meta"):
            return StyleGAN2(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"an architecture that is not supported ({reason}); {ONLY}") from None
