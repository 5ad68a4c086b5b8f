"""A result as files for other tools: each is loaded back and draws the same image."""

import shutil

import numpy as np
import pytest
import torch
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core.export import ExportError, export_image
from pti_core.freezing import freeze
from pti_core.generators.checkpoints import CheckpointError, load_generator, save_generator
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.presets import configure
from pti_core.runs import engine_for, load_run, read_stored
from pti_core.shards import invert_shard, measure_shard

SETTINGS = QUICK_SETTINGS | {"tuning.steps": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small StyleGAN2 that every format can hold; its noise matters."""
    torch.manual_seed(3)
    kwargs = {"channel_base": 512, "channel_max": 16}
    generator = StyleGAN2(24, 0, 24, 32, 3, {"num_layers": 2}, kwargs).eval().requires_grad_(False)
    for layer in generator.synthesis.layers:
        layer.noise_strength.fill_(0.1)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_generator(generator, path, {"licence": "a base's own"})
    return str(path)


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, picture in zip(("a/0.png", "a/1.png", "b/2.png"), pictures, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    (folder / "broken.png").write_text("no image")
    return folder


def finish(data, root, generator, **settings):
    run = freeze(str(data), str(root), generator, configure("demo", SETTINGS | settings))
    for shard in run.pending():
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return run


@pytest.fixture(scope="module")
def root(data, checkpoint, tmp_path_factory):
    """A finished run; tests that change it take a copy."""
    root = tmp_path_factory.mktemp("out")
    finish(data, root, checkpoint)
    return root


def drawn_from_tables(root, image_id):
    run = load_run(str(root), only_run(root))
    pivot = run.store.read("pivots", run=run.name, filters=[("image_id", "==", image_id)]).iloc[0].to_dict()
    stored = read_stored(run, engine_for(run), pivot)
    with torch.no_grad():
        return stored.generator.synthesis(stored.ws, noise=stored.noise), stored


def only_run(root):
    return next((root / "runs").iterdir()).name


@pytest.mark.parametrize("format", ["safetensors", "rosinality", "state-dict"])
def test_each_format_draws_the_image_again(format, root, checkpoint, tmp_path):
    expected, stored = drawn_from_tables(root, "a/1.png")
    done = export_image(str(root), "a/1.png", format, output=tmp_path / "tuned.file")
    assert (done.generator, done.pivot) == (tmp_path / "tuned.file", tmp_path / "tuned.file.pivot.npz")
    generator = load_generator(str(done.generator)).generator
    pivot = np.load(done.pivot)  # without pickles
    ws = torch.from_numpy(pivot["w"])
    assert ws.shape == (1, generator.num_ws, 24)
    noise = [torch.from_numpy(pivot[f"noise_{i:02d}"])[None, None] for i in range(len(generator.noise_shapes))]
    assert [tuple(n.shape[2:]) for n in noise] == generator.noise_shapes
    base = load_generator(checkpoint).generator
    with torch.no_grad():
        torch.testing.assert_close(generator.synthesis(ws, noise=noise), expected, atol=1e-5, rtol=0)
        # A tool that knows nothing of the noise maps draws it too, since the generator's own are the pivot's.
        torch.testing.assert_close(generator.synthesis(ws), expected, atol=1e-5, rtol=0)
        assert (base.synthesis(ws, noise=noise) - expected).abs().max() > 0.01  # the delta is in it
    torch.testing.assert_close(ws, stored.ws)
    assert np.array_equal(pivot["w"], pivot["ws"])
    texts = {name: str(pivot[name]) for name in ("image_id", "run", "space")}
    assert texts == {"image_id": "a/1.png", "run": only_run(root), "space": "w"}
    assert str(pivot["base_sha256"]) == load_generator(checkpoint).sha256


def test_the_own_format_says_where_it_comes_from(root, checkpoint, tmp_path):
    done = export_image(str(root), "a/0.png", output=tmp_path / "tuned.safetensors")
    notes = load_generator(str(done.generator)).notes
    assert notes["image_id"] == "a/0.png"
    assert notes["licence"] == "a base's own"
    assert notes["run"] == done.run == only_run(root)
    assert notes["base_sha256"] == load_generator(checkpoint).sha256


def test_the_other_family_the_default_name_and_a_group(tiny_checkpoint, data, tmp_path, monkeypatch):
    finish(data, tmp_path / "out", tiny_checkpoint, mode="multi")
    monkeypatch.chdir(tmp_path)
    expected, _ = drawn_from_tables(tmp_path / "out", "a/1.png")
    done = export_image(str(tmp_path / "out"), "a/1.png")
    assert done.generator.name == "a_1.safetensors"
    generator = load_generator(str(done.generator)).generator
    with torch.no_grad():
        drawn = generator.synthesis(torch.from_numpy(np.load(done.pivot)["w"]))
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match="mobilestylegan"):
        export_image(str(tmp_path / "out"), "a/1.png", "rosinality")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_1.safetensors", "a_1.safetensors.pivot.npz", "out"]


def test_unknown_images_runs_and_places_are_named(root, tmp_path):
    with pytest.raises(ExportError, match=r"no image 'a/7.png'; it has 3, for example 'a/"):
        export_image(str(root), "a/7.png", output=tmp_path / "x.safetensors")
    with pytest.raises(ExportError, match=r"'broken.png' was rejected"):
        export_image(str(root), "broken.png", output=tmp_path / "x.safetensors")
    with pytest.raises(ExportError, match=f"no run 'other'; runs there: {only_run(root)}"):
        export_image(str(root), "a/0.png", run="other", output=tmp_path / "x.safetensors")
    with pytest.raises(ExportError, match="no run there"):
        export_image(str(tmp_path / "empty"), "a/0.png", output=tmp_path / "x.safetensors")
    with pytest.raises(ExportError, match="rosinality"):
        export_image(str(root), "a/0.png", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_deltas_or_without_pivots(root, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    shutil.rmtree(bare / "deltas")
    with pytest.raises(ExportError, match=r"no delta of 'a/0.png'.*`pti run` again makes what is missing"):
        export_image(str(bare), "a/0.png", output=tmp_path / "x.safetensors")
    shutil.copytree(root, tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "pivots")
    shutil.rmtree(tmp_path / "early" / "rejects")
    with pytest.raises(ExportError, match="no finished images yet"):
        export_image(str(tmp_path / "early"), "a/0.png", output=tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_an_image_of_several_runs_needs_a_choice(root, data, checkpoint, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(root, both)
    other = finish(data, both, checkpoint, seed=1)
    with pytest.raises(ExportError, match=r"several runs: .*--run"):
        export_image(str(both), "a/0.png", output=tmp_path / "x.safetensors")
    done = export_image(str(both), "a/0.png", run=other.name, output=tmp_path / "x.safetensors")
    assert done.run == other.name


def test_nothing_is_overwritten_unasked(root, tmp_path):
    (tmp_path / "x.pt.pivot.npz").write_text("precious")
    with pytest.raises(CheckpointError, match="--overwrite"):
        export_image(str(root), "a/0.png", "rosinality", output=tmp_path / "x.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt.pivot.npz"]
    export_image(str(root), "a/0.png", "rosinality", output=tmp_path / "x.pt", overwrite=True)
    assert np.load(tmp_path / "x.pt.pivot.npz")["w"].ndim == 3


def test_the_command(root, tmp_path):
    from typer.testing import CliRunner

    from flows.cli import app

    target = tmp_path / "tuned.pt"
    result = CliRunner().invoke(app, ["export", str(root), "a/0.png", "--format", "rosinality", "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert f"wrote {target} (rosinality" in result.output
    assert f"wrote {target}.pivot.npz" in result.output
    assert load_generator(str(target)).kind == "stylegan2"
    result = CliRunner().invoke(app, ["export", str(root), "a/9.png", "-o", str(tmp_path / "no.pt")])
    assert result.exit_code == 1
    assert "no image 'a/9.png'" in result.output
    assert "Traceback" not in result.output
