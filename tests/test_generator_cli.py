"""`pti generator inspect` and `convert` as a person types them."""

import json
import subprocess
import sys

import pytest
import torch
from nvidia_files import dumps, generator_record, random_generator
from test_rosinality import square_generator
from typer.testing import CliRunner

from flows.cli import app
from pti_core.generators.checkpoints import load_generator, save_generator


def pti(*arguments):
    return CliRunner().invoke(app, ["generator", *map(str, arguments)])


def refused(result, *parts):
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.output


@pytest.fixture
def pickled(tmp_path):
    """A generator as NVIDIA's training writes it, of sizes that every format can hold."""
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps({"G_ema": generator_record(square_generator(16, conv_clamp=256))}))
    return path


def test_inspect_says_what_it_is(pickled):
    result = pti("inspect", pickled)
    assert result.exit_code == 0, result.output
    loaded = load_generator(str(pickled))
    parameters = sum(p.numel() for p in loaded.generator.parameters())
    for text in (
        "stylegan2",
        "pickle",
        "16 x 16",
        "num_ws 6",
        loaded.sha256,
        f"{parameters:,}",
        "w_std",
        "||w1 - w2||",
    ):
        assert text in result.output, text


def test_inspect_as_json(tiny_checkpoint):
    result = pti("inspect", tiny_checkpoint, "--json")
    found = json.loads(result.output)
    loaded = load_generator(tiny_checkpoint)
    assert found["sha256"] == loaded.sha256
    assert (found["kind"], found["resolution"], found["num_ws"]) == ("mobilestylegan", 32, 8)
    assert found["w"]["mean_distance"] > found["w"]["w_std"] > 0
    assert found["config"] == loaded.generator.config


def test_the_built_in_generator_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "flows.cli", "generator"]
    result = subprocess.run([*command, "inspect", "pocket"], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "128 x 128" in result.stdout
    result = pti("convert", "pocket", tmp_path / "pocket.pt")
    refused(result, "mobilestylegan", "own safetensors")
    assert list(tmp_path.iterdir()) == []
    assert pti("convert", "pocket", tmp_path / "pocket.safetensors").exit_code == 0
    assert load_generator(str(tmp_path / "pocket.safetensors")).generator.img_resolution == 128


def test_there_and_back_through_every_format(pickled, tmp_path):
    generator = load_generator(str(pickled)).generator
    steps = [
        (pickled, "a.safetensors"),
        ("a.safetensors", "b.pt"),
        ("b.pt", "c.safetensors"),
        ("c.safetensors", "d.pth"),
        ("d.pth", "e.pt"),
    ]
    for source, target in steps:
        result = pti("convert", tmp_path / source, tmp_path / target)
        assert result.exit_code == 0, result.output
        assert f"wrote {tmp_path / target}" in result.output
    for name in ("f.pt", "f.pth"):
        assert "conv_clamp 256 is left out" in pti("convert", pickled, tmp_path / name).output
    state = torch.load(tmp_path / "d.pth", weights_only=True)
    assert state.keys() == generator.state_dict().keys()
    again = load_generator(str(tmp_path / "e.pt")).generator
    for name, value in generator.state_dict().items():
        assert torch.equal(state[name], value)
        assert torch.equal(again.state_dict()[name], value)
    ws = torch.randn(1, generator.num_ws, 20)
    with torch.no_grad():
        torch.testing.assert_close(again.synthesis(ws), generator.synthesis(ws), atol=0, rtol=0)


def test_the_format_may_be_named(pickled, tmp_path):
    assert pti("convert", pickled, tmp_path / "a.bin", "--format", "state-dict").exit_code == 0
    assert "synthesis.b4.const" in torch.load(tmp_path / "a.bin", weights_only=True)
    refused(pti("convert", pickled, tmp_path / "b.bin"), "b.bin", ".safetensors", "--format")
    assert pti("convert", pickled, tmp_path / "b.bin", "--format", "onnx").exit_code == 2


def test_notes_of_a_file_go_along(tmp_path, tiny_generator):
    save_generator(tiny_generator, tmp_path / "a.safetensors", {"licence": "of its own"})
    assert pti("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors").exit_code == 0
    assert load_generator(str(tmp_path / "b.safetensors")).notes == {"licence": "of its own"}
    assert "of its own" in pti("inspect", tmp_path / "b.safetensors").output


@pytest.mark.parametrize("target", ["a.safetensors", "a.pt", "a.pth"])
def test_the_same_generator_makes_the_same_bytes(target, tmp_path, pickled):
    """Since a run knows its generator by the file's SHA-256, on every machine."""
    found = set()
    for folder in "12345":
        (tmp_path / folder).mkdir()
        assert pti("convert", pickled, tmp_path / folder / target).exit_code == 0
        found.add((tmp_path / folder / target).read_bytes())
    assert len(found) == 1


def test_what_goes_wrong_is_one_sentence(pickled, tmp_path):
    refused(pti("inspect", tmp_path / "nothing.pkl"), "nothing.pkl", "pocket-ffhq-128")
    refused(pti("convert", tmp_path / "nothing.pkl", tmp_path / "a.pt"), "nothing.pkl")
    (tmp_path / "there.pt").write_text("precious")
    refused(pti("convert", pickled, tmp_path / "there.pt"), "--overwrite")
    assert (tmp_path / "there.pt").read_text() == "precious"
    assert pti("convert", pickled, tmp_path / "there.pt", "--overwrite").exit_code == 0
    conditional = tmp_path / "conditional.pkl"
    conditional.write_bytes(dumps({"G_ema": generator_record(random_generator(8, c_dim=3, architecture="orig"))}))
    refused(pti("convert", conditional, tmp_path / "c.pt"), "conditional", "orig")
    assert not (tmp_path / "c.pt").exists()
    assert "3 classes" in pti("inspect", conditional).output
