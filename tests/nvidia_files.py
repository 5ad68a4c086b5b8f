"""Pickles of the structure that NVIDIA's training writes, from the project's own generators, for tests."""

import pickle
import sys
import types
from collections import OrderedDict

import torch

from pti_core.generators.stylegan2 import StyleGAN2

SOURCE = "raise SystemExit('the embedded source was executed')"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("only a name in a file")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickles as a persistent object: a call of NVIDIA's function with class name, source and state."""

    def __init__(self, class_name, state):
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def module_record(class_name, module, **attributes):
    """A torch module as a persistent object, children included."""
    children = OrderedDict(
        (name, module_record(type(child).__name__, child)) for name, child in module.named_children()
    )
    state = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict(module._buffers),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": children,
        "_init_args": (),
        "_init_kwargs": {},
        **attributes,
    }
    return Persistent(class_name, state)


def generator_record(generator: StyleGAN2, class_name="Generator"):
    """The whole generator with the constructor arguments that NVIDIA keeps."""
    record = module_record(
        class_name,
        generator,
        z_dim=generator.z_dim,
        c_dim=generator.c_dim,
        w_dim=generator.w_dim,
        img_resolution=generator.img_resolution,
        img_channels=generator.img_channels,
        num_ws=generator.num_ws,
    )
    sizes = {
        "w_dim": generator.w_dim,
        "img_resolution": generator.img_resolution,
        "img_channels": generator.img_channels,
    }
    children = record.meta["state"]["_modules"]
    children["synthesis"].meta["state"]["_init_kwargs"] = {**sizes, **generator.synthesis_kwargs, "num_fp16_res": 4}
    sizes = {"z_dim": generator.z_dim, "c_dim": generator.c_dim, "w_dim": generator.w_dim, "num_ws": generator.num_ws}
    children["mapping"].meta["state"]["_init_kwargs"] = {**sizes, **generator.mapping_kwargs}
    return record


def dumps(content, protocol=4) -> bytes:
    """Pickle with NVIDIA's module name in place."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    parent = types.ModuleType("torch_utils")
    parent.persistence = module
    sys.modules.update({"torch_utils": parent, "torch_utils.persistence": module})
    try:
        return pickle.dumps(content, protocol=protocol)
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def random_generator(resolution=16, c_dim=0, **synthesis) -> StyleGAN2:
    """A small generator whose noise matters, seeded."""
    torch.manual_seed(resolution + c_dim)
    kwargs = {"channel_base": 256, "channel_max": 16, **synthesis}
    generator = StyleGAN2(12, c_dim, 20, resolution, 3, {"num_layers": 2}, kwargs).eval().requires_grad_(False)
    for layer in generator.synthesis.layers:
        layer.noise_strength.fill_(0.2)
        layer.bias.normal_()
    generator.mapping.w_avg.copy_(generator.mapping(torch.randn(200, 12), labels(200, c_dim))[:, 0].mean(0))
    return generator


def labels(n, c_dim):
    """One-hot labels, or none."""
    return torch.eye(c_dim)[torch.arange(n) % c_dim] if c_dim else None
