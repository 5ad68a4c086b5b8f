"""Files that want to run something: refused without running it. Every payload is first shown to be live."""

import builtins
import io
import os
import pickle
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from nvidia_files import dumps, generator_record, random_generator

from pti_core.generators.checkpoints import CheckpointError, load_generator

pytestmark = pytest.mark.timeout(60)


class Call:
    """Pickles as a call; callable itself, so that the result of one call can be called by the next."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __call__(self):
        raise AssertionError("only for pickle's own checks")

    def __reduce__(self):
        return self.function, self.arguments


def nested_torch_file(canary):
    """What should be the storage of a tensor is an arbitrary pickle."""
    buffer = io.BytesIO()
    torch.save(Call(os.system, f"touch {canary}"), buffer, _use_new_zipfile_serialization=False)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


def nested_zip_torch_file(canary):
    """The same in torch's newer format."""
    buffer = io.BytesIO()
    torch.save(Call(os.system, f"touch {canary}"), buffer)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


PAYLOADS = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w').close()"),
    "exec": lambda canary: Call(exec, f"open({str(canary)!r}, 'w').close()"),
    "Popen": lambda canary: Call(subprocess.Popen, ["touch", str(canary)]),
    "getattr chain": lambda canary: Call(Call(getattr, Call(builtins.__import__, "os"), "system"), f"touch {canary}"),
    "open": lambda canary: Call(open, str(canary), "w"),
    "storage": nested_torch_file,
    "zip storage": nested_zip_torch_file,
}
PLACES = {
    "whole file": lambda payload: payload,
    "beside G_ema": lambda payload: {"G_ema": generator_record(random_generator(8)), "extra": payload},
    "instead of G_ema": lambda payload: {"G_ema": payload},
    "in an ordered dict": lambda payload: {"G": OrderedDict(a=payload)},
}


def refused(path, *parts):
    """Loading the file is refused: one short sentence that names the file, holds these parts, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            load_generator(str(path))
    message = str(caught.value)
    assert Path(path).name in message
    assert "\n" not in message
    assert len(message) < 450
    assert ";" in message  # what is wrong; what to do
    for part in parts:
        assert part in message, message
    return message


def wait_for(canary):
    """Does the canary appear? A process that a payload started may outlive its parent by a moment."""
    for _ in range(100):
        if canary.exists():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_are_live(payload, tmp_path):
    file, canary = tmp_path / "evil.pkl", tmp_path / "canary"
    file.write_bytes(pickle.dumps(PAYLOADS[payload](canary)))
    code = f"import pickle; pickle.loads(open({str(file)!r}, 'rb').read())"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert wait_for(canary)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_that_calls_is_refused_without_calling(payload, place, protocol, tmp_path):
    file, canary = tmp_path / "evil.pkl", tmp_path / "canary"
    file.write_bytes(dumps(PLACES[place](PAYLOADS[payload](canary)), protocol=protocol))
    if "storage" in payload and place == "beside G_ema" and protocol > 2:  # protocol 2 has no bytes: a call, refused
        load_generator(str(file))  # a storage that no tensor of the generator uses is never even looked at
    else:
        refused(file)
    assert not canary.exists()


@pytest.mark.parametrize("payload", ["storage", "zip storage"])
def test_a_tensor_whose_storage_is_a_pickle_is_refused_without_calling(payload, tmp_path):
    file, canary = tmp_path / "evil.pkl", tmp_path / "canary"
    storage = PAYLOADS[payload](canary)
    record = generator_record(random_generator(8))
    block = record.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b4"].meta["state"]
    block["_parameters"]["const"] = Call(
        torch._utils._rebuild_tensor_v2, storage, 0, (16, 4, 4), (16, 4, 1), False, OrderedDict()
    )
    file.write_bytes(dumps({"G_ema": record}))
    refused(file, "storage")
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("payload", [name for name in PAYLOADS if "storage" not in name])
@pytest.mark.parametrize("place", ["whole file", "instead of g_ema", "in g_ema", "in a state dict"])
def test_a_torch_file_that_calls_is_refused_without_calling(payload, place, legacy, tmp_path):
    file, canary = tmp_path / "evil.pt", tmp_path / "canary"
    evil = PAYLOADS[payload](canary)
    content = {
        "whole file": evil,
        "instead of g_ema": {"g_ema": evil},
        "in g_ema": {"g_ema": {"style.1.weight": evil}},
        "in a state dict": random_generator(8).state_dict() | {"synthesis.b4.const": evil},
    }
    torch.save(content[place], file, _use_new_zipfile_serialization=not legacy)
    refused(file, "nothing of it was run")
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_the_torch_payload_is_live(legacy, tmp_path):
    file, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"g_ema": PAYLOADS["os.system"](canary)}, file, _use_new_zipfile_serialization=not legacy)
    code = f"import torch; torch.load({str(file)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert canary.exists()


def test_embedded_source_is_ignored_and_the_file_loads(tmp_path):
    file, canary = tmp_path / "network.pkl", tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w').close()"
    generator = random_generator(8)
    record = generator_record(generator)

    def infect(part):
        part.meta["module_src"] = source
        for child in part.meta["state"]["_modules"].values():
            infect(child)

    infect(record)
    file.write_bytes(dumps({"G_ema": record}))
    assert source.encode() in file.read_bytes()
    loaded = load_generator(str(file)).generator
    assert not canary.exists()
    ws = torch.randn(1, generator.num_ws, 20)
    torch.testing.assert_close(loaded.synthesis(ws), generator.synthesis(ws), atol=0, rtol=0)
    exec(compile(source, "source", "exec"), {})  # it would have been noticed
    assert canary.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.storage", "_load_from_bytes.__call__"),
        ("collections", "OrderedDict.__class__"),
        ("builtins", "set.add"),
        ("builtins", "getattr"),
        ("torch_utils.persistence", "_src_to_module"),
        ("torch_utils.persistence.x", "_reconstruct_persistent_obj"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("dnnlib.util", "call_func_by_name"),
        ("copyreg", "_reconstructor"),
        ("pti_core.generators.checkpoints.nvidia_pickle", "_table"),
    ],
)
def test_names_are_allowed_exactly_or_not_at_all(module, name, tmp_path):
    for start in (
        b"\x80\x03c" + f"{module}\n{name}\n".encode(),
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93",
    ):
        file = tmp_path / "names.pkl"
        file.write_bytes(start + b")R.")
        refused(file, f"{module}.{name}", "refused")


def test_state_is_set_on_nothing(tmp_path):
    # BUILD on a class would set its attributes, on an instance its __dict__; here it is read over.
    file = tmp_path / "build.pkl"
    file.write_bytes(b"\x80\x03ccollections\nOrderedDict\n}X\x05\x00\x00\x00cleark\x01sb.".replace(b"k\x01", b"K\x01"))
    refused(file)
    assert callable(OrderedDict.clear)


def test_a_zip_that_only_looks_like_a_torch_file(tmp_path):
    file, canary = tmp_path / "evil.pt", tmp_path / "canary"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(PAYLOADS["os.system"](canary), protocol=2))
        archive.writestr("evil/version", b"3\n")
    refused(file)
    assert not canary.exists()
