"""StyleGAN2 out of NVIDIA's pickles (stylegan2-ada-pytorch, stylegan3 repository) without running anything in them.

Such a file pickles whole modules together with their Python source, and NVIDIA's loader executes that source. Here
only an exact list of (module, name) is resolved, each to an inert stand-in: modules become records of their tensors
and constructor arguments, the source is ignored, and tensor storages, which are nested torch files, are read with
`weights_only=True`. From the records the project's own class is built and filled.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.own import fill
from pti_core.generators.stylegan2 import StyleGAN2

MAX_OPCODES, MAX_TUPLES = 2_000_000, 50_000  # a 1024 generator with discriminator needs about 30,000 and 3,000
CONVERT = "convert it with NVIDIA's stylegan2-ada-pytorch (legacy.py) first"


@dataclass
class Module:
    """An inert record of a pickled module."""

    class_name: str
    state: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """All its parameters and buffers, by their names in a state dict."""
        for group in ("_parameters", "_buffers"):
            for name, value in self.state.get(group, {}).items():
                if isinstance(value, Tensor):
                    yield prefix + name, value
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Module):
                yield from child.tensors(f"{prefix}{name}.")

    def child(self, name: str) -> Module | None:
        """A sub-module by name."""
        found = self.state.get("_modules", {}).get(name)
        return found if isinstance(found, Module) else None


class _Storage:
    """The raw values of a tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values  # one-dimensional


class _Inert:
    """Whatever a harmless constructor was called with; holds nothing and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict(dict[str, Any]):
    """`dnnlib.util.EasyDict` without its attribute access."""

    def __setstate__(self, state: Any) -> None:
        pass


def _module(meta: Any) -> Module:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise pickle.UnpicklingError("a persistent object that is no module")
    return Module(str(meta.get("class_name")), meta["state"])


def _storage(data: Any) -> _Storage:
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a nested torch file that is no tensor storage")
    values = torch.empty(0, dtype=loaded.dtype)
    return _Storage(values.set_(loaded._untyped_storage, 0, (len(loaded),), (1,)))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    size, stride, offset = tuple(map(int, size)), tuple(map(int, stride)), int(offset)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min((*size, *stride, offset), default=0) < 0 or (math.prod(size) and last >= len(storage.values)):
        raise pickle.UnpicklingError(f"a tensor of shape {list(size)} in a storage of {len(storage.values)} values")
    return storage.values.as_strided(size, stride, offset)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


def _scalar(dtype: Any, data: Any = b"") -> float | int | None:
    formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    code: Any = dtype.args[0] if isinstance(dtype, _Inert) and dtype.args else None
    if not isinstance(data, bytes) or code not in formats or len(data) != struct.calcsize(formats[code]):
        return None
    value: float | int = struct.unpack(formats[code], data)[0]
    return value


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _InertDict,
    ("numpy", "dtype"): _Inert,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
"""All that a file may name. Nothing else is ever resolved, and what is resolved is code of this file."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Resolve a name of the file: from the list, or not at all."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.startswith("dnnlib.tflib"):
            raise CheckpointError(f"a StyleGAN pickle of the TensorFlow era; {CONVERT}")
        raise CheckpointError(
            f"a pickle that names {module}.{name}, which a StyleGAN2 file has no need of; it is refused"
        )


def load_nvidia(data: bytes, source: str) -> StyleGAN2:
    """The generator (`G_ema`, else `G`) of an NVIDIA pickle: float32, eval mode, without gradients.

    Raises CheckpointError, naming the file, for anything else.
    """
    try:
        _check_opcodes(data)
        content = _Unpickler(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{source}: a pickle nested too deeply to be a generator; it is refused") from None
    except Exception as error:  # a hostile file can make the unpickler raise nearly anything
        text = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{source}: damaged, truncated or no StyleGAN2 pickle ({text}); fetch it again") from None
    module = _find_generator(content, source)
    generator = _build(module, source)
    tensors = {name: value.float() for name, value in module.tensors()}
    fill(generator, tensors, source)
    return generator


def _check_opcodes(data: bytes) -> None:
    """Read the opcodes without acting on them: lengths that fit the file, and no more structure than a network has."""
    tuples = 0
    for count, (opcode, _, _) in enumerate(pickletools.genops(io.BytesIO(data)), start=1):
        tuples += opcode.name.startswith("TUPLE")
        if count > MAX_OPCODES or tuples > MAX_TUPLES:
            raise CheckpointError("a pickle with far more structure than a generator has; it is refused")


def _find_generator(content: Any, source: str) -> Module:
    found = content
    if isinstance(content, dict):
        found = content.get("G_ema") or content.get("G")
    if not isinstance(found, Module):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{source}: a pickle without a generator (`G_ema` or `G`); it holds {keys or 'nothing'}")
    if found.class_name != "Generator":
        raise CheckpointError(f"{source}: the pickled network is a {found.class_name}, a Generator was expected")
    synthesis, mapping = found.child("synthesis"), found.child("mapping")
    if synthesis is None or mapping is None:
        raise CheckpointError(f"{source}: a generator without mapping or synthesis; it is no StyleGAN2")
    if synthesis.child("input") is not None:
        raise CheckpointError(f"{source}: a StyleGAN3 generator; StyleGAN2 ones can be read (config stylegan2 there)")
    return found


def _build(module: Module, source: str) -> StyleGAN2:
    """An empty generator of the file's architecture."""
    synthesis, mapping = module.child("synthesis"), module.child("mapping")
    assert synthesis is not None
    assert mapping is not None
    try:
        kwargs = dict(synthesis.state.get("_init_kwargs") or {})
        mapping_kwargs = dict(mapping.state.get("_init_kwargs") or {})
        for name in ("w_dim", "img_resolution", "img_channels"):
            kwargs.pop(name, None)
        for name in ("z_dim", "c_dim", "w_dim", "num_ws"):
            mapping_kwargs.pop(name, None)
        mapping_kwargs = {k: v for k, v in mapping_kwargs.items() if k in MAPPING_ARGUMENTS}
        kwargs = {k: v for k, v in kwargs.items() if k not in IGNORED_ARGUMENTS}
        state = module.state
        with torch.device("meta"):
            return StyleGAN2(
                int(state["z_dim"]),
                int(state["c_dim"]),
                int(state["w_dim"]),
                int(state["img_resolution"]),
                int(state["img_channels"]),
                mapping_kwargs,
                kwargs,
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{source}: an architecture that is not supported ({error})") from None


MAPPING_ARGUMENTS = ("num_layers", "embed_features", "layer_features", "lr_multiplier")
IGNORED_ARGUMENTS = ("use_fp16", "fp16_channels_last", "fused_modconv_default")  # how it runs, not what it draws
