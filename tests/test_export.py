"""A result as files for other tools: each is loaded back and draws the same image."""

import hashlib
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core.export import ExportError, _picture_path, export_image, export_images
from pti_core.freezing.freeze import freeze
from pti_core.generators.checkpoints import CheckpointError, load_generator, save_generator
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.images import to_uint8
from pti_core.names import plain_path
from pti_core.presets import configure
from pti_core.runs import engine_for, load_run, read_stored
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.sources.folders import listed_with
from pti_core.storage.known_runs import RunError

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
    for shard in run.to_do().shards:
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
    (tmp_path / "x.safetensors").touch()  # what is asked for is looked at before where it goes
    with pytest.raises(ExportError, match=r"'broken.png' was rejected"):
        export_image(str(root), "broken.png", output=tmp_path / "x.safetensors")
    with pytest.raises(RunError, match=f"no run 'other'; runs there: {only_run(root)}"):
        export_image(str(root), "a/0.png", run="other", output=tmp_path / "x.safetensors")
    with pytest.raises(RunError, match="no run there"):
        export_image(str(tmp_path / "empty"), "a/0.png", output=tmp_path / "x.safetensors")
    with pytest.raises(ExportError, match="rosinality"):
        export_image(str(root), "a/0.png", "onnx")
    with pytest.raises(CheckpointError, match=r"x.pkl: a name that ends in .safetensors .* expected, or --format"):
        export_image(str(root), "a/0.png", output=tmp_path / "x.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_run_without_deltas_or_without_pivots(root, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    shutil.rmtree(bare / "deltas")
    with pytest.raises(ExportError, match=r"no delta of 'a/0.png'.*`pti run` again makes what is missing"):
        export_image(str(bare), "a/0.png", output=tmp_path / "x.safetensors")
    shutil.copytree(root, tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "pivots")
    shutil.rmtree(tmp_path / "early" / "rejects")
    with pytest.raises(ExportError, match=r"'a/0.png' is not done yet; `pti run` again finishes run"):
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
    assert export_image(str(root), "a/0.png", output=tmp_path / "x.pt", overwrite=True).format == "rosinality"
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


def test_the_images_of_a_run_as_files(root, tmp_path):
    folder, seen = tmp_path / "faces", []
    done = export_images(str(root), folder, on_progress=lambda done, total: seen.append((done, total)))
    assert (done.run, done.written, done.kept, done.unfinished) == (only_run(root), 3, 0, 0)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == ["a/0.png", "a/1.png", "b/2.png"]
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        expected = to_uint8(drawn_from_tables(root, name)[0].numpy())[0]
        assert np.array_equal(np.array(Image.open(folder / name)), expected)
    (folder / "a/0.png").unlink()
    (folder / "a/1.png").write_text("precious")
    again = export_images(str(root), folder)
    assert (again.written, again.kept) == (1, 2)
    assert (folder / "a/1.png").read_text() == "precious"
    assert export_images(str(root), folder, "a/1.png", overwrite=True).written == 1
    assert Image.open(folder / "a/1.png").size == (32, 32)


def test_where_the_picture_of_an_image_lies():
    assert _picture_path("a/0.PNG") == "a/0.PNG"
    assert _picture_path("a/0.jpg") == "a/0.jpg.png"
    assert _picture_path("0.png@2") == "0.png@2.png"
    assert _picture_path("../../etc/x.png") == _picture_path("/etc/x.png") == "etc/x.png"
    assert _picture_path("a\\..\\b\0.png") == "a_.._b_.png"


def test_images_that_would_share_a_file_are_kept_apart(pictures, checkpoint, tmp_path):
    third = "a.jpg-509b0d4641a7.png"  # what the first one is called, since it shares its file with the second
    names = ["a.jpg", "a.jpg.png", third, "../b.png", "b.png", "c.jpg"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, picture in zip(names, pictures, strict=False):
            Image.fromarray(picture).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", name)
    finish(tmp_path / "set.zip", tmp_path / "out", checkpoint)
    out, folder = tmp_path / "out", tmp_path / "faces"
    files = {name: f"{plain_path(name)}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.png" for name in names[:-1]}
    files |= {"c.jpg": "c.jpg.png"}
    assert files["a.jpg"] == third
    one = export_images(str(out), tmp_path / "one", "b.png")  # is called as among all of them
    assert (one.written, [path.name for path in (tmp_path / "one").iterdir()]) == (1, [files["b.png"]])
    done = export_images(str(out), folder)
    assert (done.written, done.left_out) == (6, [])
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.values())
    for name, file in files.items():
        expected = to_uint8(drawn_from_tables(out, name)[0].numpy())[0]
        assert np.array_equal(np.array(Image.open(folder / file)), expected), name
    assert export_images(str(out), folder).kept == 6


def test_a_name_that_is_too_long_costs_its_image_alone(pictures, checkpoint, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from flows.cli import app

    (tmp_path / "data").mkdir()
    long, longer = "l" * 240 + ".jpg", "l" * 250 + ".jpg"
    for name in ("1.png", long, longer, "z.png"):
        Image.fromarray(pictures[0]).save(tmp_path / "data" / name)
    run = finish(tmp_path / "data", tmp_path / "out", checkpoint)
    done = export_images(str(tmp_path / "out"), tmp_path / "faces")
    assert sorted(p.name for p in (tmp_path / "faces").iterdir()) == ["1.png", f"{long}.png", "z.png"]
    assert (done.run, done.written, done.kept) == (run.name, 3, 0)
    assert done.left_out == [
        f"image {longer!r}: no file of this name can be written here (File name too long); rename the image"
    ]
    result = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--pictures", str(tmp_path / "faces")])
    assert result.exit_code == 0
    assert "3 there already" in result.output
    assert f"note: {done.left_out[0]}" in result.output
    monkeypatch.chdir(tmp_path)  # a generator's file gets a name of its own, which may be shorter
    files = [export_image(str(tmp_path / "out"), name).generator for name in (long, longer)]
    assert all(file.exists() and len(file.name) < 230 for file in files)
    assert files[0] != files[1]


def test_images_that_cannot_be_exported(root, data, checkpoint, tmp_path):
    folder = tmp_path / "faces"
    with pytest.raises(ExportError, match=r"'broken.png' was rejected"):
        export_images(str(root), folder, "broken.png")
    with pytest.raises(ExportError, match="s3://faces: a folder on this machine expected"):
        export_images(str(root), "s3://faces")
    freeze(str(data), str(tmp_path / "out"), checkpoint, configure("demo", SETTINGS))
    with pytest.raises(ExportError, match="no finished shard yet"):
        export_images(str(tmp_path / "out"), folder)
    assert not folder.exists()


def test_the_command_for_images(root, tmp_path):
    from typer.testing import CliRunner

    from flows.cli import app

    folder, run = tmp_path / "faces", only_run(root)
    result = CliRunner().invoke(app, ["export", str(root), "a/0.png", "--pictures", str(folder)])
    assert result.output == f"wrote 1 image of run {run} to {folder}\n"
    result = CliRunner().invoke(app, ["export", str(root), "--pictures", str(folder)])
    assert result.output == f"wrote 2 images of run {run} to {folder}; 1 there already (--overwrite draws them anew)\n"
    for options, sentence in (
        ([], "error: which image?"),
        (["--pictures", str(folder), "-o", "x.pt"], "error: --pictures writes pictures"),
    ):
        result = CliRunner().invoke(app, ["export", str(root), *options])
        assert result.exit_code == 1
        assert sentence in result.output


@pytest.mark.parametrize("below", ["", "inverted", "a/deep/inverted"])
def test_pictures_that_would_be_inputs_of_the_next_listing_are_refused(root, data, below):
    before = sorted(data.rglob("*"))
    for image in (None, "a/0.png"):
        with pytest.raises(ExportError, match=r"lies in the data set of run .*; choose a folder outside of it"):
            export_images(str(root), data / below, image, overwrite=True)
    assert sorted(data.rglob("*")) == before


def test_folders_that_a_listing_takes_in_and_those_that_it_leaves_out(dataset, tmp_path):
    data, output = dataset(1), tmp_path / "data" / "out"
    run = freeze(str(data), str(output), "pocket", configure("noop", {}))
    for folder, listed in {
        data: True,
        data / "new": True,
        data / "0.png": True,
        data / "new/../../data/new": True,
        tmp_path / "data-2": False,
        tmp_path: False,
        data / ".hidden/new": False,
        data / "new/__MACOSX": False,
        output / "inverted": False,
        output / f"runs/{run.name}/report/inverted": False,
    }.items():
        assert listed_with(str(data), folder, str(output)) == listed, folder
    assert listed_with(f"file://{data}/", data / "new")
    assert listed_with(str(data), output / "inverted")  # of another run
    assert not listed_with(str(data), output / f"runs/{run.name}/report/inverted")
    (tmp_path / "link").symlink_to(data)
    (data / "elsewhere").symlink_to(tmp_path)
    assert listed_with(str(data), tmp_path / "link/new")
    assert listed_with(str(tmp_path / "link"), data / "new")
    assert listed_with(str(data), data / "elsewhere/new")
    for other in ("demo", "s3://bucket/data", f"{data}/*.png", str(tmp_path / "nowhere"), ""):
        assert not listed_with(other, data / "new")


@pytest.mark.parametrize(
    ("pattern", "below", "names", "listed"),
    [
        ("*.parquet", "", ["images.parquet"], True),
        ("*.parquet", "t", ["images.parquet"], False),
        ("**/*.parquet", "t", ["images.parquet"], True),
        ("**/*.parquet", ".t", ["images.parquet"], False),
        ("train-{0..9}.parquet", "", ["images.parquet"], False),
        ("images.parquet", "", ["images.parquet"], True),
        ("faces.parquet", "", ["images.parquet"], False),
        ("**/*.png", "new/deep", [], True),
        ("**/*.jpg", "new/deep", [], False),
        ("*/*.png", "", [], True),
        ("*/*.PNG", "new", [], True),
        ("*/*.png", "new/deep", [], False),
        ("a*/*.png", "new", [], False),
        ("*/b/**", "new/b/c", [], True),
        ("0.png", "", [], True),
        ("0.jpg", "", [], False),
    ],
)
def test_folders_that_a_pattern_reaches(tmp_path, pattern, below, names, listed):
    assert listed_with(f"{tmp_path}/{pattern}", tmp_path / below, names=names) == listed
    if "*" in pattern:
        assert listed_with(f"memory://b/faces/{pattern}", f"memory://b/faces/{below}", names=names) == listed
    assert not listed_with(f"memory://b/faces/{pattern}", tmp_path / below, names=names)


def test_folders_of_a_bucket_that_a_listing_takes_in():
    for folder, listed in {"b/faces": True, "b/faces/t": True, "b/faces-2": False, "b": False}.items():
        assert listed_with("memory://b/faces", f"memory://{folder}", names=["images.parquet"]) == listed
        assert listed_with("parquet://face::memory://b/faces", f"memory://{folder}", names=["x.parquet"]) == listed
