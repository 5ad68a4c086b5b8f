"""What tests share: tiny generators and data sets, quick to run and real in every other way."""

import os
import subprocess

os.environ.setdefault("DO_NOT_TRACK", "1")

import numpy as np
import pytest
import torch
from disks import LARGE, Disk, mount
from PIL import Image

from pti_core.generators.checkpoints import save_generator
from pti_core.generators.mobilestylegan import MobileStyleGAN
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard

if torch.accelerator.is_available():  # tests compare bits, which is what a CPU gives; PTI_DEVICE=cuda tries a GPU
    os.environ.setdefault("PTI_DEVICE", "cpu")

torch.set_num_threads(1)  # two threads gain nothing at 32 x 32, and lose much beside another process

QUICK_SETTINGS = {"pivot.steps": 6, "pivot.w_samples": 300, "tuning.steps": 5, "measure.z_samples": 1, "batch": 4}


def finish(run: Run) -> Run:
    """Do all shards of a run that are left, as the flow does."""
    for shard in run.to_do().shards:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return run


@pytest.fixture(scope="session")
def tiny_generator() -> MobileStyleGAN:
    """An untrained generator of 32 x 32 images whose noise matters and whose w_avg is that of its samples."""
    torch.manual_seed(0)
    generator = MobileStyleGAN([32, 32, 16], z_dim=16, w_dim=24, num_layers=4).eval().requires_grad_(False)
    for layer in generator.synthesis.layers:
        layer.noise_strength.fill_(0.1)
    generator.mapping.w_avg.copy_(generator.mapping(torch.randn(1000, 16))[:, 0].mean(0))
    return generator


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_generator, tmp_path_factory) -> str:
    """The tiny generator as a file."""
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    save_generator(tiny_generator, path)
    return str(path)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Smooth colourful pictures `[40, 40, 3]`, uint8: larger than the tiny generator's, so that they are resized."""
    y, x = np.mgrid[0:40, 0:40] / 40
    rng, found = np.random.default_rng(0), []
    for _ in range(12):
        a, b, phase = rng.uniform(1, 6, 3), rng.uniform(1, 6, 3), rng.uniform(0, 6, 3)
        waves = np.sin(x[..., None] * a + y[..., None] * b + phase)
        found.append(((waves + 1) * 127.5).astype(np.uint8))
    return found


@pytest.fixture
def dataset(pictures, tmp_path):
    """A function that writes the first n pictures into a new folder and gives its path."""

    def write(n: int = 5, name: str = "data"):
        folder = tmp_path / name
        folder.mkdir()
        for i, picture in enumerate(pictures[:n]):
            Image.fromarray(picture).save(folder / f"{i}.png")
        return folder

    return write


@pytest.fixture
def disk(tmp_path):
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", LARGE, "tmpfs", folder)
    except OSError as error:
        pytest.skip(f"file systems cannot be mounted here ({error})")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real Prefect server with the deployments and a worker, started once for all modules that use this one."""
    from prefect_server import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        yield running
