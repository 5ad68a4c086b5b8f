"""Generator files that claim what cannot be: refused at once, before any memory is spent on the claim."""

import io
import json
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from nvidia_files import Persistent, dumps, generator_record, random_generator
from test_checkpoints import CONST, own, pickled, write
from test_checkpoints_hostile import Call, refused

from pti_core.generators.checkpoints import load_generator, save_generator
from pti_core.generators.checkpoints.torch_file import LEGACY

pytestmark = pytest.mark.timeout(60)


def test_a_deep_recursion_is_only_a_list(tmp_path):
    depth = 200_000
    refused(write(tmp_path, b"\x80\x03" + b"]" * depth + b"a" * (depth - 1) + b"."), "list")
    refused(write(tmp_path, b"\x80\x03N" + b"\x85" * depth + b"."), "tuple")
    refused(write(tmp_path, b"\x80\x03X\x05\x00\x00\x00G_ema" + b"\x85" * depth + b"}" + b"s" * 3 + b"."))


@pytest.mark.parametrize(
    ("depth", "width", "tensors"), [(7, 60, 0), (30, 2, 1), (110, 1, 1), (2, 200, 2), (1, 2, 15_000)]
)
def test_modules_inside_modules_without_end(tmp_path, depth, width, tensors):
    inner = {"_parameters": dict.fromkeys(map(str, range(tensors)), torch.zeros(1)), "_modules": {}}
    for _ in range(depth):
        inner = {"_modules": dict.fromkeys(map(str, range(width)), Persistent("Layer", inner))}
    record = generator_record(random_generator(8))
    record.meta["state"]["_modules"]["many"] = Persistent("Layer", inner)
    refused(write(tmp_path, dumps({"G_ema": record})), "far more modules")


def test_a_module_inside_itself(tmp_path):
    # What a hand-written pickle can do: a table that is put into itself through the memo.
    state: dict = {"_modules": {}}
    state["_modules"]["again"] = Persistent("Layer", state)
    record = generator_record(random_generator(8))
    record.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"]["again"] = Persistent("Layer", state)
    refused(write(tmp_path, dumps({"G_ema": record})), "far more modules")


@pytest.mark.parametrize("opcode", [b"B", b"\x8e", b"X", b"\x8d", b"\x8b", b"\x96"])
def test_a_length_of_ten_gigabytes(tmp_path, opcode):
    size = 10 * 2**30
    length = struct.pack("<Q", size) if opcode in b"\x8e\x8d\x96" else struct.pack("<I", min(size, 2**31 - 1))
    refused(write(tmp_path, b"\x80\x04" + opcode + length + b"x" * 100))


def test_a_safetensors_header_of_ten_gigabytes(tmp_path):
    refused(write(tmp_path, struct.pack("<Q", 10 * 2**30) + b"{" + b" " * 100, "own.safetensors"), "10,737,418,240")
    refused(write(tmp_path, struct.pack("<Q", 50) + b"{" + b" " * 100, "own.safetensors"), "damaged header")
    deep = b'{"__metadata__":' + b"[" * 100_000
    refused(write(tmp_path, struct.pack("<Q", len(deep)) + deep, "own.safetensors"), "header")


def test_a_structure_without_end(tmp_path):
    refused(write(tmp_path, b"\x80\x03" + b"N0" * 300_000 + b"N."), "more structure")
    refused(write(tmp_path, b"\x80\x03(" + b"N" * 499_000 + b"l."), "list")


@pytest.mark.parametrize("count", [2**40, 257, 255, -1])
def test_a_storage_that_lies_about_its_length(tmp_path, count):
    buffer = io.BytesIO()
    torch.save(torch.zeros(256)._typed_storage(), buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    said, there = b"M\x00\x01", struct.pack("<q", 256)  # in the storage's name, and before its values
    assert data.count(said) == 1
    assert data.count(there) == 1
    lies = [data.replace(said, b"\x8a\x08" + struct.pack("<q", count)), data.replace(there, struct.pack("<q", count))]
    for lie in [*lies, lies[0].replace(there, struct.pack("<q", count))]:
        storage = Call(torch.storage._load_from_bytes, lie)
        arguments = (storage, 0, (16, 4, 4), (16, 4, 1), False, OrderedDict())
        data = pickled(random_generator(8), CONST, Call(torch._utils._rebuild_tensor_v2, *arguments))
        refused(write(tmp_path, data), "storage")


def test_a_zip_bomb(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("bomb/data.pkl", "w", force_zip64=True) as record:
            for _ in range(200):
                record.write(bytes(2**20))
        archive.writestr("bomb/version", b"3\n")
    refused(path, "compressed")


@pytest.mark.parametrize(
    "data",
    [
        b"]r\xff\xff\xff\xff.",  # a memo of 2**32 places
        b"]p99999999999999999999\n.",
        b"h\x07.",  # from an empty memo
        b"j\xff\xff\xff\x7f.",
        b"0.",
        b"t.",
        b"(((e.",
        b"}]s.",
        b"}]]s.",  # a list as a key
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x8b\xff\xff\xff\xff.",  # an integer of negative size
        b"Pname\n.",
        b"\x82\x01.",  # an extension
        b"(ios\nsystem\n.",
        b"(cos\nsystem\no.",
    ],
)
def test_pickles_that_make_no_sense(tmp_path, data):
    refused(write(tmp_path, b"\x80\x03" + data))


def test_a_key_that_takes_for_ever_to_hash(tmp_path):
    # 2**200 leaves to a reader that hashes keys or prints what it found, 200 pairs to one that does not.
    pairs = b"N" + b"".join(b"q\x00h\x00\x86" for _ in range(200))
    refused(write(tmp_path, b"\x80\x03}" + pairs + b"Ns."), "key")
    refused(write(tmp_path, b"\x80\x03" + pairs + b"."), "tuple")
    path = tmp_path / "old.pt"
    torch.save(torch.zeros(1), path, _use_new_zipfile_serialization=False)
    start = path.read_bytes()[: len(LEGACY) + len(b"\x80\x02M\xe9\x03.")]
    path.write_bytes(start + b"\x80\x02}.\x80\x02}" + pairs + b"Ns." + b"\x80\x02].")
    refused(path, "key")
    path = tmp_path / "hash.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hash/data.pkl", b"\x80\x02}" + pairs + b"Ns.")
        archive.writestr("hash/version", b"3\n")
    refused(path, "key")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (16, 4, 4), (2**30, 4, 1)),  # far beyond its storage
        (2**38, (16, 4, 4), (16, 4, 1)),
        (1, (16, 4, 4), (16, 4, 1)),  # one value too far
        (0, (-16, 4, 4), (16, 4, 1)),
        (0, (16, 4, 4), (-16, 4, 1)),
        (-1, (16, 4, 4), (16, 4, 1)),
        (0, (10**9, 10**9), (0, 0)),  # one value, shown 10**18 times
        (0, (2**62, 4, 4), (16, 4, 1)),
        (0, (16, 4, 4), (16, 4)),
        (0, (16.0, 4, 4), (16, 4, 1)),
        ("0", (16, 4, 4), (16, 4, 1)),
    ],
)
def test_tensors_of_absurd_sizes(tmp_path, offset, size, stride):
    storage = torch.zeros(256)._typed_storage()
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    refused(write(tmp_path, pickled(random_generator(8), CONST, tensor)))
    file = tmp_path / "tensor.pt"
    torch.save({"g_ema": {"style.1.weight": tensor}}, file)
    refused(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("img_resolution", 2**40),
        ("img_resolution", 48),
        ("img_resolution", "16"),
        ("z_dim", 10**9),
        ("z_dim", -1),
        ("w_dim", 10**400),
        ("c_dim", None),
        ("img_channels", True),
        ("mapping_kwargs", {"num_layers": 10**9}),
        ("mapping_kwargs", [1]),
        ("mapping_kwargs", {"lr_multiplier": "fast"}),
        ("synthesis_kwargs", {"channel_base": 10**12}),
        ("synthesis_kwargs", {"channel_base": 1}),
        ("synthesis_kwargs", {"channel_max": 10**9}),
        ("synthesis_kwargs", {"channels": [16, 16, 16]}),
        ("synthesis_kwargs", {"channels": [16, 10**9]}),
        ("synthesis_kwargs", {"channels": [16, 0]}),
        ("synthesis_kwargs", {"channels": "16"}),
        ("synthesis_kwargs", {"architecture": "dense"}),
        ("synthesis_kwargs", {"resample_filter": [1] * 10**5}),
        ("synthesis_kwargs", {"kernel_size": 10**6}),
        ("synthesis_kwargs", {"conv_clamp": -1}),
        ("synthesis_kwargs", {"surprise": 1}),
        ("surprise", 1),
    ],
)
def test_architectures_of_absurd_numbers(tmp_path, name, value):
    generator = random_generator(8)
    config = {**generator.config, name: value}

    def change(tensors, metadata):
        metadata["config"] = json.dumps(config)

    key = next(iter(value)) if isinstance(value, dict) else name
    refused(own(generator, tmp_path, change), "not supported", key)
    if name.endswith("_kwargs") and isinstance(value, dict):
        record = generator_record(generator)
        part = record.meta["state"]["_modules"][name.removesuffix("_kwargs")]
        part.meta["state"]["_init_kwargs"].update(value)
        refused(write(tmp_path, dumps({"G_ema": record})), "not supported", key)
    elif name in generator.config and not name.endswith("_kwargs") and value is not True:
        record = generator_record(generator)
        record.meta["state"][name] = value
        refused(write(tmp_path, dumps({"G_ema": record})))


@pytest.mark.parametrize(
    "config",
    [
        {"channels": [4] * 1000},
        {"channels": [10**9, 4]},
        {"channels": "44"},
        {"channels": [6, 4]},
        {"channels": [8, 8], "num_layers": 10**9},
        {"channels": [8, 8], "w_dim": 2**70},
        {},
        [],
        None,
        "text",
    ],
)
def test_architectures_of_absurd_numbers_of_the_other_family(tiny_generator, tmp_path, config):
    def change(tensors, metadata):
        metadata["config"] = json.dumps(config)

    refused(own(tiny_generator, tmp_path, change), "not supported")


def test_metadata_that_is_no_json(tiny_generator, tmp_path):
    for text in ("{", "[" * 100_000, "9" * 100_000):

        def change(tensors, metadata, text=text):
            metadata["config"] = text

        refused(own(tiny_generator, tmp_path, change), "no JSON")
    save_generator(tiny_generator, tmp_path / "fine.safetensors")
    load_generator(str(tmp_path / "fine.safetensors"))
