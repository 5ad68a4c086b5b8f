"""Everything on a device that is not the CPU gives what the CPU gives: what can be tested of a GPU without one.

A small C++ library makes torch believe in another accelerator (second_device.cpp). All that decides by the device is
then as on a GPU: images that are searched together, stacked weights, widths found by trying, one shard after the
other; and a tensor that was forgotten on the CPU is an error. Where there is a GPU of NVIDIA, all is tried on it too.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.cpp_extension import include_paths

from pti_core.generators.checkpoints.own import save_generator
from tests.on_second_device import CUDA, NAME, ROUNDED
from tests.test_stacked import generators

TESTS = Path(__file__).parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PTI_DEVICE"}  # of other tests
ENVIRONMENT |= {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": ""}
GPU = os.environ | {"PYTHONPATH": str(TESTS.parent), "PTI_DEVICE": CUDA}
COMPILER = shutil.which("c++")
pytestmark = [pytest.mark.slow, pytest.mark.computing]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> str:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("device") / "second_device.so"
    libraries = Path(torch.__file__).parent / "lib"
    command = [COMPILER, "-shared", "-fPIC", "-std=c++20", "-O1", str(TESTS / "second_device.cpp"), "-o", str(path)]
    command += [f"-I{folder}" for folder in include_paths()]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += [f"-L{libraries}", "-lc10", "-ltorch_cpu", "-ltorch"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return str(path)


@pytest.fixture(scope="module", params=["stand-in", CUDA] if torch.cuda.is_available() else ["stand-in"])
def device(request) -> str:
    """What `run` takes for it: the library of the stand-in, or `cuda`."""
    return CUDA if request.param == CUDA else request.getfixturevalue("stand_in")


def run(device, *commands):
    """`pti` commands, one after the other, where torch has the other device; on the CPU where `device` is empty."""
    said = json.dumps([[*map(str, command)] for command in commands])
    arguments = [sys.executable, str(TESTS / "on_second_device.py"), device, said]
    environment = GPU if device in (CUDA, ROUNDED) else ENVIRONMENT
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkpoints(tiny_generator, tmp_path_factory):
    """Untrained generators of both kinds, by kind."""
    folder, paths = tmp_path_factory.mktemp("generators"), {}
    for kind, generator in generators(tiny_generator).items():
        paths[kind] = folder / f"{kind}.safetensors"
        save_generator(generator, paths[kind])
    return paths


QUICK = {
    "pivot.steps": 4,
    "pivot.w_samples": 300,
    "tuning.steps": 6,
    "tuning.stop_lpips": 0,
    "batch": 4,
    "precision": "fp32",  # `auto` may be another one on each device
}
NEAR = 2e-3  # in float32
AS_TORCH_ROUNDS = "stylegan2, as torch rounds"  # the stand-in rounds nothing
JOBS = {  # generator, options, settings, and how near the tables are
    "mobilestylegan, a generator for each": ("mobilestylegan", [], {}, NEAR),
    "mobilestylegan, one for all, w+": ("mobilestylegan", ["--mode", "multi"], {"pivot.space": "w+"}, NEAR),
    "stylegan2, a generator for each": ("stylegan2", [], {"tuning.basis": "weights"}, NEAR),
    # On a CPU half precision is bf16, elsewhere fp16, whose digits are more.
    "stylegan2, half precision": ("stylegan2", [], {"precision": "half"}, 2e-2),
    AS_TORCH_ROUNDS: ("stylegan2", [], {}, 2e-2),
}


@pytest.fixture(scope="module", params=JOBS)
def roots(request, checkpoints, device, pictures, tmp_path_factory):
    """One job on both devices, with edits and a study of alpha in float32: the roots there and here."""
    kind, options, settings, near = JOBS[request.param]
    if request.param == AS_TORCH_ROUNDS:
        if device != CUDA:
            pytest.skip("of a GPU")
        device = ROUNDED
    folder = tmp_path_factory.mktemp("roots")
    (folder / "data").mkdir()
    for i, picture in enumerate(pictures[:5]):
        Image.fromarray(picture).save(folder / "data" / f"{i}.png")
    more = [f"--set={name}={value}" for name, value in (QUICK | settings).items()]
    found = []
    for name, where in (("there", device), ("here", "")):
        root = folder / name
        commands = [["run", folder / "data", "-o", root, "--generator", checkpoints[kind], "--preset", "fast"]]
        commands[0] += [*options, *more]
        if near <= NEAR:
            commands.append(["edit", root, "-d", "pca:0", "-s", "2"])
            study = ["--limit", "1", "--alpha", "30", "--alpha", "off", "--z-samples", "1"]
            commands.append(["alpha-study", root, *study])
        run(where, *commands)
        found.append(root)
    return *found, near


def with_another_step(there, here):
    """Owners whose deltas have another step on each device; by no more than half an octave."""
    steps = [pd.read_parquet(root / "deltas").groupby("owner")["scale"].max() for root in (there, here)]
    octaves = np.log2(steps[0] / steps[1]).abs()
    assert len(steps[0]) == len(steps[1])
    assert octaves.max() < 0.51
    return octaves.index[octaves > 0]


def test_all_tables_are_those_of_the_cpu(roots):
    """Pivots of images that are searched together end elsewhere by the last bits: after so few steps, nearly there.

    So a delta's step, which is one of a grid by whether the promise is kept, is the same unless it is just kept; that
    may be so with one image of several.
    """
    *both, near = roots
    names, elsewhere = ["pivots", "metrics"], pd.Index([])
    if near <= NEAR:
        names += ["locality", "edits", "alpha_nearness", "alpha_drift"]
        elsewhere = with_another_step(*both)
        assert len(elsewhere) <= (pd.read_parquet(both[1] / "deltas")["owner"].nunique() > 1)
    for name in names:
        there, here = (pd.read_parquet(root / name) for root in both)
        assert len(there) == len(here) > 0
        there, here = (t[~t["image_id"].isin(elsewhere)].reset_index(drop=True) for t in (there, here))
        for column in sorted({"lpips", "mse", "psnr", "w"} & set(here)):
            a, b = (np.stack(t[column]).astype(float) for t in (there, here))
            np.testing.assert_allclose(a, b, rtol=10 * near, atol=near, err_msg=f"{name}.{column}")


def test_an_encoder_is_trained_there(device, checkpoints, tmp_path):
    sizes = ["--samples", "64", "--drawing-steps", "4"]
    run(device, ["train-encoder", checkpoints["mobilestylegan"], *sizes, "--folder", tmp_path])
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("work", "error"),
    [
        ("assert best_device() == 'second'; assert (x @ x.T).cpu().sum() == 12", None),
        ("x + torch.ones(2, 3)", "same device"),
        ("torch.nn.functional.conv2d(x[None, None], torch.ones(1, 1, 1, 1))", "convolution: second:0 and cpu"),
        ("torch.cat([x, torch.ones(2, 3)])", "all tensors to be on second:0"),
    ],
)
def test_the_device_is_taken_and_a_tensor_elsewhere_is_an_error(stand_in, work, error):
    lines = ["import sys, torch", f"sys.path[:0] = [{str(TESTS)!r}]", "from on_second_device import add_device"]
    lines += [f"add_device({stand_in!r})", "from pti_core.machine.device import best_device"]
    lines += ["x = torch.ones(2, 3, device=best_device())", work]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode == 0) == (error is None), done.stderr
    assert error is None or error in done.stderr


TRIED = """
import sys, torch
sys.path[:0] = [{tests!r}]
from on_second_device import add_device
add_device({library!r})
from pti_core.engine import Engine
from pti_core.generators.checkpoints import load_generator
from pti_core.presets import configure
config = configure("demo", {{"batch": 4, "pivot.w_samples": 100, "tuning.basis": "weights"}})
engine, sizes = Engine(load_generator({checkpoint!r}).generator, config, "second"), []
engine.judge.slices[0].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
for count, most in ((0, 0), (1, 1), (1, 0), (2, 2), (3, 4), (2, 0), (9, 0), (4, 0), (None, 0)):
    sizes.clear()
    engine.prepare(count)
    assert max(sizes, default=0) == most, (count, sizes)
    assert max(engine.at_once, engine.stack) <= engine.config.batch
"""


def test_no_more_at_once_are_tried_than_there_are_images_and_more_once_they_come(stand_in, checkpoints):
    code = TRIED.format(tests=str(TESTS), library=stand_in, checkpoint=str(checkpoints["mobilestylegan"]))
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("side", ["plain", "engine"])
def test_a_side_of_the_benchmark_has_a_row_and_a_curve_of_every_image(device, checkpoints, pictures, tmp_path, side):
    (tmp_path / "data").mkdir()
    for i, picture in enumerate(pictures[:5]):
        Image.fromarray(picture).save(tmp_path / "data" / f"{i}.png")
    settings = {name: value for name, value in QUICK.items() if side == "engine" or name != "precision"}
    said = {"side": side, "preset": "fast", "settings": settings, "images": str(tmp_path / "data"), "limit": None}
    said |= {"generator": str(checkpoints["mobilestylegan"]), "device": CUDA if device == CUDA else NAME}
    run(device, ["benchmarks.side", json.dumps(said), tmp_path / "out.json"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["image_id"] for row in found["rows"]] == [f"{i}.png" for i in range(5)]
    for row in found["rows"]:
        assert len(row["curve"]) >= row["steps"] > 0
        assert row["curve"][-1][0] > row["curve"][0][0]
    if side == "engine":
        assert 0 < found["matrix"] < 1
        assert 1 <= found["stack"] <= QUICK["batch"] >= found["at_once"] >= 1
