"""Damaged and foreign generator files: each is refused with one sentence that says what it is and what to do."""

import json
import math
import pickle
import sys
import types

import pytest
import safetensors.torch
import torch
from nvidia_files import Persistent, dumps, generator_record, random_generator
from PIL import Image
from test_checkpoints_hostile import refused
from test_rosinality import square_generator
from torch import nn

from pti_core.generators.checkpoints import load_generator
from pti_core.generators.checkpoints.convert import write_generator
from pti_core.generators.checkpoints.own import FORMAT

pytestmark = pytest.mark.timeout(60)
CONST = ("synthesis", "b4", "const")


def pickled(generator, path=(), value=None, drop=False):
    """An NVIDIA pickle of the generator, with one parameter or buffer replaced or dropped."""
    record = generator_record(generator)
    state = record.meta["state"]
    if path:
        for name in path[:-1]:
            state = state["_modules"][name].meta["state"]
        group = "_buffers" if path[-1] in state["_buffers"] else "_parameters"
        if drop:
            del state[group][path[-1]]
        else:
            state[group][path[-1]] = value
    return dumps({"G_ema": record, "training_set_kwargs": {}})


def own(generator, tmp_path, change=lambda tensors, metadata: None, name="own.safetensors"):
    """The project's own file of the generator, with its tensors or its metadata changed."""
    tensors = {k: v.clone() for k, v in generator.state_dict().items()}
    metadata = {"format": FORMAT, "kind": generator.kind, "config": json.dumps(dict(generator.config))}
    change(tensors, metadata)
    path = tmp_path / name
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    return path


def write(tmp_path, data, name="file.pkl"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def poisoned(shape, value):
    tensor = torch.zeros(shape)
    tensor.view(-1)[-1] = value
    return nn.Parameter(tensor)


# --- damaged -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.9999])
def test_truncated_files(tiny_generator, tmp_path, share):
    data = pickled(random_generator(8))
    refused(write(tmp_path, data[: int(len(data) * share)]), "fetch it again")
    whole = own(tiny_generator, tmp_path).read_bytes()
    refused(write(tmp_path, whole[: int(len(whole) * share)], "cut.safetensors"), "again")


@pytest.mark.parametrize("format", ["pickle", "safetensors", "rosinality", "legacy", "state-dict"])
def test_every_flipped_byte_of_the_structure_is_refused_or_harmless(format, tmp_path):
    path, generator = tmp_path / "file", square_generator(8)
    if format == "pickle":
        path.write_bytes(pickled(generator))
    else:
        write_generator(generator, path, "rosinality" if format == "legacy" else format)
    if format == "legacy":
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    rng = torch.Generator().manual_seed(0)
    places = torch.randint(len(data), (40,), generator=rng).tolist()
    for end in (range(2000), range(len(data) - 2000, len(data))):  # where these formats have their structure
        places += [end[i] for i in torch.randint(len(end), (30,), generator=rng).tolist()]
    for at in places:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(torch.randint(8, (1,), generator=rng))
        path.write_bytes(damaged)
        try:
            load_generator(str(path))  # a flipped bit of a weight or of the ignored source
        except ValueError:
            refused(path)


def test_wrong_shape_missing_and_unknown_tensors_in_a_pickle(tmp_path):
    generator = random_generator(8)
    for value, parts in (
        (nn.Parameter(torch.zeros(15, 4, 4)), ["wrong shape", "synthesis.b4.const", "[15, 4, 4]", "[16, 4, 4]"]),
        (nn.Parameter(torch.zeros(16, 4, 4, dtype=torch.int64), requires_grad=False), ["int64"]),
        (nn.Parameter(torch.zeros(16, 4, 4, dtype=torch.complex64)), ["complex64"]),
    ):
        refused(write(tmp_path, pickled(generator, CONST, value)), *parts)
    refused(write(tmp_path, pickled(generator, CONST, drop=True)), "lacks", "synthesis.b4.const")
    extra = pickled(generator, ("synthesis", "b4", "second"), nn.Parameter(torch.zeros(1)))
    refused(write(tmp_path, extra), "unknown", "synthesis.b4.second")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    generator = random_generator(8)
    data = pickled(generator, CONST, poisoned((16, 4, 4), value))
    refused(write(tmp_path, data), "NaN or infinite", "synthesis.b4.const")

    def poison(tensors, metadata):
        tensors["mapping.w_avg"][0] = value

    refused(own(generator, tmp_path, poison), "NaN or infinite", "mapping.w_avg")


def test_wrong_missing_and_unknown_tensors_in_the_own_format(tiny_generator, tmp_path):
    def wrong(tensors, metadata):
        tensors["synthesis.const"] = torch.zeros(3, 4, 4)

    def missing(tensors, metadata):
        del tensors["synthesis.const"], tensors["mapping.w_avg"]

    def unknown(tensors, metadata):
        tensors["synthesis.surprise"] = torch.zeros(3)

    refused(own(tiny_generator, tmp_path, wrong), "wrong shape", "[3, 4, 4]")
    refused(own(tiny_generator, tmp_path, missing), "lacks", "synthesis.const", "mapping.w_avg")
    refused(own(tiny_generator, tmp_path, unknown), "unknown", "synthesis.surprise")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_tensors_in_the_own_format_that_are_no_numbers_with_a_point(tiny_generator, tmp_path, dtype):
    def change(tensors, metadata):
        tensors["mapping.w_avg"] = tensors["mapping.w_avg"].to(dtype)

    refused(own(tiny_generator, tmp_path, change), "mapping.w_avg", "floating point")


# --- of another kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        (b"just some words\nin lines\n", "text file"),
        (b"\x1f\x8b\x08\x00" + b"\x00" * 40, "gzip"),
        (bytes(range(128, 200)), "unknown kind"),
        (b"PK\x03\x04" + b"\x00" * 60, "torch file"),
        (b"\x80", "unknown kind"),
        (b"\x80\x09}.", "unknown kind"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, data, part):
    refused(write(tmp_path, data), part)


def test_pictures_folders_pipes_and_nothing(tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    refused(picture, "PNG image")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "a folder")
    refused(tmp_path / "nothing.pkl", "no such file", "pocket-ffhq-128")
    refused(picture / "inside.pkl", "no such file")
    refused("/dev/zero", "device")
    refused("nosuchprotocol://bucket/file.pkl", "cannot be read")


def test_pickles_of_the_tensorflow_era(tmp_path):
    module = types.ModuleType("dnnlib.tflib.network")
    module.Network = type("Network", (), {"__module__": "dnnlib.tflib.network"})
    sys.modules["dnnlib.tflib.network"] = module
    sys.modules["dnnlib.tflib"] = sys.modules["dnnlib"] = types.ModuleType("dnnlib")
    try:
        data = pickle.dumps((module.Network(), module.Network(), module.Network()), protocol=2)
    finally:
        for name in ("dnnlib.tflib.network", "dnnlib.tflib", "dnnlib"):
            del sys.modules[name]
    refused(write(tmp_path, data), "TensorFlow", "legacy.py")


def test_other_networks(tmp_path):
    generator = random_generator(8)
    record = generator_record(generator)
    synthesis = record.meta["state"]["_modules"]["synthesis"].meta["state"]
    synthesis["_modules"]["input"] = Persistent("SynthesisInput", {"_modules": {}})
    refused(write(tmp_path, dumps({"G_ema": record})), "StyleGAN3", "--cfg stylegan2")
    other = generator_record(generator, "TriPlaneGenerator")
    refused(write(tmp_path, dumps({"G_ema": other})), "TriPlaneGenerator")
    refused(write(tmp_path, dumps({"D": generator_record(generator, "Discriminator")})), "without a generator", "D")
    refused(write(tmp_path, dumps(["G_ema"])), "without a generator", "list")
    refused(write(tmp_path, dumps({"G_ema": Persistent("Generator", {"_modules": {}})})), "mapping or synthesis")
    refused(write(tmp_path, dumps({"G_ema": None, "G": 3})), "without a generator")


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    refused(path, "no format in its metadata")
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    refused(path, "'pt'", FORMAT)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata={"format": FORMAT, "kind": "dcgan"})
    refused(path, "dcgan", "stylegan2")
