"""StyleGAN2 out of NVIDIA's pickles (stylegan2-ada-pytorch, stylegan3 repository) without running anything in them.

Such a file pickles whole modules together with their Python source, and NVIDIA's loader executes that source. Here
only an exact list of (module, name) is known, each to an inert stand-in: modules become records of their tensors and
constructor arguments, the source is ignored, and tensor storages, which are nested torch files, stay in the file
until they are wanted. From the records the project's own class is built.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.architecture import MAPPING, SYNTHESIS, build
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.lazy import LazyTensor, Storage, make_parameter, make_table, make_tensor
from pti_core.generators.checkpoints.plain_pickle import Blob, PickleError, PlainUnpickler
from pti_core.generators.checkpoints.torch_file import read_legacy
from pti_core.generators.checkpoints.weights import Read, fill

MAX_PARTS, MAX_NAME = 20_000, 200  # modules or tensors of a network (a 1024 generator has 250), letters of a name
IGNORED = ("use_fp16", "fp16_channels_last", "fused_modconv_default", "w_avg_beta")  # how it runs or was trained
ONLY = "generators of NVIDIA's own StyleGAN2 code can be read"
TF_CONVERT = "convert it with NVIDIA's stylegan2-ada-pytorch (legacy.py) first"


@dataclass(frozen=True)
class NestedStorage:
    """A nested torch file with the values of a tensor."""

    blob: Blob

    def locate(self, file: IO[bytes]) -> Storage:
        """Where its values are. PickleError for anything but one plain storage."""
        file.seek(self.blob.offset)
        try:
            found = read_legacy(file, self.blob.offset + self.blob.size)
        except ValueError as error:
            raise PickleError(f"a tensor storage that is not plain data ({error})") from None
        if not isinstance(found, Storage):
            raise PickleError("a nested file that is no tensor storage")
        return found


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


def _storage(data: Any) -> NestedStorage:
    if not isinstance(data, Blob):
        raise PickleError("a tensor storage without bytes")
    return NestedStorage(data)


def _scalar(dtype: Any, value: Any = None) -> float | int | None:
    """A number of numpy's; None for what is none."""
    formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    code = dtype[0] if isinstance(dtype, tuple) and dtype and isinstance(dtype[0], str) else None
    data = value.data if isinstance(value, Blob) else None
    if data is None or code not in formats or len(data) != struct.calcsize(formats[code]):
        return None
    number: float | int = struct.unpack(formats[code], data)[0]
    return number


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("torch._utils", "_rebuild_tensor_v2"): make_tensor,
    ("torch._utils", "_rebuild_parameter"): make_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): make_table,
    ("dnnlib.util", "EasyDict"): make_table,
    ("builtins", "set"): lambda *_: [],  # of `_non_persistent_buffers_set`, in pickles of protocol 3
    ("numpy", "dtype"): lambda *arguments: arguments,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
"""All that a file may name, and what stands for it: functions that make plain data."""


def _refuse(module: str, name: str) -> CheckpointError:
    if module.startswith(("dnnlib.tflib", "tfutil")):
        return CheckpointError(f"a StyleGAN pickle of the TensorFlow era; {TF_CONVERT}")
    return CheckpointError(
        f"a pickle that names {module}.{name}, which no StyleGAN2 file needs; it is refused, nothing of it was run"
    )


def load_nvidia(path: Path) -> Read:
    """The generator (`G_ema`, else `G`) of such a pickle: float32, eval mode, without gradients; and no notes.

    Raises CheckpointError, or another ValueError where the pickle is damaged, for anything else.
    """
    with path.open("rb") as file:
        module = _find_generator(PlainUnpickler(file, path.stat().st_size, ALLOWED, _refuse).load())
        generator, tensors = _build(module), module.tensors()
        fill(generator, {name: tensor.shape for name, tensor in tensors.items()}, lambda name: tensors[name].read(file))
    return Read("pickle", generator)


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


def _build(module: Module) -> Generator:
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
    unknown = [k for k in networks["mapping"] if k not in MAPPING]
    unknown += [k for k in networks["synthesis"] if k not in SYNTHESIS]
    if unknown:
        raise CheckpointError(f"an architecture that is not supported (the argument {str(unknown[0])[:60]}); {ONLY}")
    sizes = {name: module.state.get(name) for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")}
    kwargs = {"mapping_kwargs": networks["mapping"], "synthesis_kwargs": networks["synthesis"]}
    return build("stylegan2", sizes | kwargs, ONLY)
