"""MobileStyleGAN's weights out of the `random-face` wheel (an OpenVINO IR v10 graph), without OpenVINO.

The `.xml` is a graph of typed layers, the `.bin` the raw constants. Both are data: nothing of the wheel is run.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from pti_core.generators.mobilestylegan import MobileStyleGAN, StyledConv

WHEEL = "random-face==2021.7.21.1"
CHANNELS = [512, 512, 512, 512, 512, 256, 128, 64]


class _Graph:
    """Constants of an IR graph, by the name and by the place where they are used."""

    def __init__(self, xml: bytes, constants: bytes) -> None:
        root = ElementTree.fromstring(xml)
        self.consumer: dict[str, list[str]] = {}
        self.inputs: dict[str, dict[str, str]] = {}
        for edge in root.iterfind("edges/edge"):
            self.inputs.setdefault(edge.get("to-layer", ""), {})[edge.get("to-port", "")] = edge.get("from-layer", "")
        self.kinds: list[tuple[str, str]] = []  # (id, type) in topological order
        self.values: dict[str, np.ndarray] = {}
        self.named: dict[str, np.ndarray] = {}
        for layer in root.iterfind("layers/layer"):
            number, kind = layer.get("id", ""), layer.get("type", "")
            self.kinds.append((number, kind))
            data = layer.find("data")
            if kind == "Const" and data is not None and data.get("element_type") == "f32":
                shape = [int(n) for n in (data.get("shape") or "").split(",") if n.strip()]
                offset, size = int(data.get("offset", 0)), int(data.get("size", 0))
                value = np.frombuffer(constants, np.float32, size // 4, offset).reshape(shape)
                self.values[number] = value
                self.named[layer.get("name", "")] = value

    def operands(self, *kinds: str) -> list[np.ndarray]:
        """The constant operand of every layer of these kinds that has one, in order of execution."""
        found = []
        for number, kind in self.kinds:
            if kind in kinds:
                ports = sorted(self.inputs[number].items(), key=lambda port: int(port[0]))
                found += [self.values[source] for _, source in ports if source in self.values]
        return found


def _assign(target: Tensor, value: np.ndarray, gain: float = 1.0) -> None:
    if target.numel() != value.size:
        raise ValueError(f"a constant of shape {list(value.shape)} where {list(target.shape)} was expected")
    with torch.no_grad():
        target.copy_(torch.from_numpy(value.copy()).view_as(target) * gain)


def _noise(layer: StyledConv, value: np.ndarray) -> None:
    """Split a baked constant into a unit-variance map and a strength."""
    strength = float(value.std())
    _assign(layer.noise_const, value / strength if strength > 0 else value)
    _assign(layer.noise_strength, np.array([strength], np.float32))


def read_random_face(wheel: str | Path) -> MobileStyleGAN:
    """The full 1024 x 1024 FFHQ generator from a downloaded `random-face` wheel; w_avg is left at zero.

    Raises ValueError where the file is no such wheel, or is not there.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            parts = {
                name: archive.read(f"random_face/data/{name}")
                for name in ("MappingNetwork.xml", "MappingNetwork.bin", "SynthesisNetwork.xml", "SynthesisNetwork.bin")
            }
    except FileNotFoundError:
        fetch = f"pip download --no-deps {WHEEL}"
        raise ValueError(f"wheel {str(wheel)!r} does not exist; `{fetch}` fetches it") from None
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} is not the wheel {WHEEL}: {error}") from error
    generator = MobileStyleGAN(CHANNELS).eval().requires_grad_(False)

    mapping = _Graph(parts["MappingNetwork.xml"], parts["MappingNetwork.bin"])
    weights = mapping.operands("MatMul")
    biases = [v for v in mapping.values.values() if v.shape == (512,)]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        layer = getattr(generator.mapping, f"fc{i}")
        _assign(layer.weight, weight, 1 / layer.weight_gain)
        _assign(layer.bias, bias, 1 / layer.bias_gain)

    graph = _Graph(parts["SynthesisNetwork.xml"], parts["SynthesisNetwork.bin"])
    kernels = iter(graph.operands("Convolution", "GroupConvolution"))
    noises = iter([v for v in graph.values.values() if v.ndim == 4 and v.shape[:2] == (1, 1) and v.shape[2] > 1])

    def styled(layer: StyledConv, name: str) -> None:
        _affine(layer.affine.weight, layer.affine.bias, f"{name}.conv.modulation")
        if layer.separable:
            _assign(layer.depthwise, next(kernels))
            _assign(layer.pointwise, next(kernels), math.sqrt(layer.pointwise.shape[1]))
        else:
            # The graph scales the style by 1/sqrt(fan in): exactly this class's gain, so the kernel stays as it is.
            _assign(layer.weight, next(kernels))
        _assign(layer.bias, graph.named[f"{name}.bias"])
        _noise(layer, next(noises))

    def _affine(weight: Tensor, bias: Tensor, name: str) -> None:
        _assign(weight, graph.named[f"{name}.weight"], math.sqrt(weight.shape[1]))
        _assign(bias, graph.named[f"{name}.bias"])

    synthesis = generator.synthesis
    _assign(synthesis.const, graph.named["m.input.input"])
    styled(synthesis.conv, "m.conv1")
    for i, block in enumerate(synthesis.blocks):
        _affine(block.up.weight, block.up.bias, f"m.layers.{i}.up.modulation")
        styled(block.conv0, f"m.layers.{i}.conv1")
        styled(block.conv1, f"m.layers.{i}.conv2")
    last = len(synthesis.blocks) - 1
    _affine(synthesis.head.affine.weight, synthesis.head.affine.bias, f"m.layers.{last}.to_img.conv.modulation")
    _assign(synthesis.head.weight, next(kernels))
    _assign(synthesis.head.bias, graph.named[f"m.layers.{last}.to_img.bias"])
    return generator
