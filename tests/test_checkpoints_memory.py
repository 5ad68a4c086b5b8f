"""What a load costs in memory, measured from outside: the peak of a fresh process."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from nvidia_files import dumps, generator_record, module_record

from pti_core.generators.checkpoints.convert import write_generator
from pti_core.generators.stylegan2 import StyleGAN2

CODE = """
import sys
from pathlib import Path
from pti_core.generators.checkpoints import load_generator

def kibibytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

load_generator(sys.argv[1])  # imports and thread pools
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = kibibytes("VmRSS")
kept = load_generator(sys.argv[2])
print((kibibytes("VmHWM") - before) * 1024)
"""
FORMATS = ("own.safetensors", "network.pkl", "rosinality.pt")


def files(folder, generator):
    """The generator in every format; in the pickle beside a G and a D of the same size, as a training writes it."""
    folder.mkdir()
    content = {
        "G": generator_record(copy.deepcopy(generator)),
        "D": module_record("Discriminator", copy.deepcopy(generator)),
        "G_ema": generator_record(generator),
    }
    (folder / "network.pkl").write_bytes(dumps(content))
    for name in ("own.safetensors", "rosinality.pt"):
        write_generator(generator, folder / name)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    small = StyleGAN2(16, 0, 16, 8, 3, {"num_layers": 1}, {"channel_base": 64}).eval()
    large = StyleGAN2(384, 0, 384, 64, 3, {"num_layers": 8}, {"channel_max": 384}).eval()
    size = sum(value.numel() * 4 for value in large.state_dict().values())
    return files(root / "small", small), files(root / "large", large), size


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be read on Linux only")
@pytest.mark.parametrize("name", FORMATS)
def test_loading_never_holds_more_than_twice_the_generator(name, folders):
    small, large, size = folders
    command = [sys.executable, "-c", CODE, str(small / name), str(large / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert size < int(result.stdout) * 1.05  # it was measured at all
    assert int(result.stdout) < 2.05 * size  # pages of the allocator and of code besides
    print(f"{name}: peak {int(result.stdout) / size:.2f} times the generator's {size / 2**20:.0f} MiB")
