"""The packaged generator and faces: the real thing, small enough for a CPU."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pti_core.deltas import Promise
from pti_core.directions import visible_directions
from pti_core.engine import Engine
from pti_core.generators.checkpoints import BUILT_IN, load_generator
from pti_core.images import to_float
from pti_core.inversions import Delta, Inversion, Target
from pti_core.measure import measure_locality
from pti_core.perceptual import ASSETS, load_lpips
from pti_core.presets import configure
from pti_core.reading import DEMO_FOLDER
from pti_core.sampling import w_statistics

# One clean face, and two with something that the generator cannot draw.
SOME_FACES = ["01-clean-curls.png", "03-round-glasses.png", "10-knitted-cap.png"]


@pytest.fixture(scope="module")
def pocket():
    return load_generator("pocket-ffhq-128").generator


def face(name: str) -> Target:
    pixels = np.asarray(Image.open(DEMO_FOLDER / name))
    return Target(name, name, torch.from_numpy(to_float(pixels)))


def invert(pocket, names, **overrides):
    engine = Engine(pocket, configure("demo", {name.replace("__", "."): v for name, v in overrides.items()}))
    results = list(engine.invert([face(name) for name in names]))
    inversions = {r.image_id: r for r in results if isinstance(r, Inversion)}
    return inversions, {r.owner: r for r in results if isinstance(r, Delta)}, engine


def test_the_asset_is_small_and_says_where_it_comes_from(pocket):
    path = ASSETS / BUILT_IN["pocket-ffhq-128"]
    assert path.stat().st_size <= 20e6
    assert pocket.img_resolution == 128
    notes = (ASSETS / "README.md").read_text()
    figures = json.loads(path.with_suffix(".json").read_text())
    for word in ("random-face", "NVIDIA", "CC BY-NC-SA", f"{figures['psnr']:.2f}", f"{figures['lpips_alex']:.3f}"):
        assert word in notes, word


def test_it_draws_varied_pictures_in_range(pocket):
    z = torch.randn(6, pocket.z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        images = pocket.synthesis(pocket.mapping(z))
    assert images.shape == (6, 3, 128, 128)
    assert images.abs().quantile(0.99) < 1.2
    lpips = load_lpips()
    assert lpips(images[:3], images[3:]).min() > 0.2
    assert images.flip(3).sub(images).abs().mean() > 0.05


def test_its_w_is_that_of_ffhq(pocket):
    """Of the full network, whose mapping it has, the mean ||w1 - w2|| is 14.0 and ||w_avg|| 4.12."""
    statistics = w_statistics(pocket, 4000)
    a, b = statistics.samples[:2000], statistics.samples[2000:]
    assert (a - b).norm(dim=1).mean().item() == pytest.approx(14.0, abs=0.2)
    assert statistics.w_avg.norm().item() == pytest.approx(4.12, abs=0.15)
    torch.testing.assert_close(pocket.mapping.w_avg, statistics.w_avg, atol=0.05, rtol=0)


def test_the_demo_faces():
    faces = sorted(DEMO_FOLDER.glob("*.png"))
    assert len(faces) == 12
    assert sum("clean" not in path.name for path in faces) >= 4
    for path in faces:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((128, 128), "RGB")
    assert "NASA" in (DEMO_FOLDER / "LICENCE.md").read_text()


@pytest.fixture(scope="module")
def some(pocket):
    """The demo preset on some of the faces."""
    return invert(pocket, SOME_FACES)


def test_the_whole_method_on_real_faces_with_and_without_locality(pocket, some):
    """Paired over images: the tuned generator draws the image, and the regulariser keeps the rest of W."""
    on, deltas_on, engine = some
    off, deltas_off, _ = invert(pocket, SOME_FACES, locality__enabled=False)
    lpips, drift = load_lpips(), {"on": [], "off": []}
    for name in SOME_FACES:
        measures = on[name].measures
        assert measures["tuned"]["lpips"] <= 0.2 * measures["pivot"]["lpips"]
        assert measures["tuned"]["psnr"] >= measures["pivot"]["psnr"] + 4
        assert measures["stored"]["lpips"] <= measures["tuned"]["lpips"] + Promise().lpips + 1e-6
        ws = on[name].w[None].expand(-1, pocket.num_ws, -1)
        torch.testing.assert_close(on[name].w, off[name].w, atol=1e-4, rtol=0)  # the same pivot
        for key, delta in {"on": deltas_on[name], "off": deltas_off[name]}.items():
            tuned = engine.stored_generator(delta.tensors)
            rows = measure_locality(pocket, tuned, ws, name, engine.config.measure, lpips)
            drift[key].append(np.mean([row.lpips for row in rows]))
    # A search that ends elsewhere in W moves single faces, so not for each of them.
    assert sum(a < b for a, b in zip(drift["on"], drift["off"], strict=True)) >= len(SOME_FACES) - 1, drift
    assert np.mean(drift["on"]) < 0.8 * np.mean(drift["off"]), drift


def test_edits_change_the_tuned_image_as_they_change_the_base_image(pocket, some):
    """The pixel change of an edit, before and after tuning, points the same way."""
    inversions, deltas, engine = some
    for direction in visible_directions(pocket, engine.statistics, engine.lpips):
        for name in SOME_FACES[:2]:
            tuned = engine.stored_generator(deltas[name].tensors)
            ws = inversions[name].w[None].expand(-1, pocket.num_ws, -1)
            edited = direction.edit(ws, 2.0)
            with torch.no_grad():
                base_change = pocket.synthesis(edited) - pocket.synthesis(ws)
                change = tuned.synthesis(edited) - tuned.synthesis(ws)
            correlation = torch.corrcoef(torch.stack([base_change.flatten(), change.flatten()]))[0, 1]
            assert correlation > 0.5, (direction.name, name, correlation)


@pytest.fixture(scope="module")
def demo(pocket):
    """The demo preset on all twelve faces."""
    return invert(pocket, [path.name for path in sorted(DEMO_FOLDER.glob("*.png"))])[0]


@pytest.mark.slow
@pytest.mark.computing
def test_what_the_demo_promises(demo):
    frame = pd.DataFrame([{"stage": stage} | values for i in demo.values() for stage, values in i.measures.items()])
    medians = frame.groupby("stage")[["lpips", "psnr"]].median()
    assert len(demo) == 12
    assert medians.loc["tuned", "lpips"] <= 0.1 * medians.loc["pivot", "lpips"], medians
    assert medians.loc["tuned", "psnr"] >= medians.loc["pivot", "psnr"] + 8, medians
    for one in demo.values():
        assert one.measures["stored"]["lpips"] <= one.measures["tuned"]["lpips"] + Promise().lpips + 1e-6


@pytest.mark.slow
@pytest.mark.computing
def test_what_is_done_together_is_what_is_done_alone(pocket, demo):
    """On a CPU to the last bit, although the search is chaotic: each image has a thread of its own."""
    for name in list(demo)[:2]:
        alone = invert(pocket, [name])[0][name]
        for stage, measures in alone.measures.items():
            assert demo[name].measures[stage]["lpips"] == measures["lpips"], (name, stage)
