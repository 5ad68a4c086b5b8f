"""The encoder: training on samples, its file, the start of the pivot search, and what a run records of it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import QUICK_SETTINGS

from pti_core.config import PivotConfig
from pti_core.encoder import files, making
from pti_core.encoder.augment import augment
from pti_core.encoder.files import EncoderError, encoder_for, find_encoder, read_encoder, save_encoder
from pti_core.encoder.samples import draw, sampled_features
from pti_core.encoder.start import encoded_start
from pti_core.encoder.training import TrainingConfig, train_encoder
from pti_core.freezing.freeze import freeze
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.machine.parallel import Stopped, allow_all, stop_all
from pti_core.perceptual import load_lpips
from pti_core.pivot import find_pivots
from pti_core.presets import configure
from pti_core.runs import any_engine_for, forget_engine, load_run
from pti_core.sampling import w_statistics
from pti_core.shard.shards import invert_shard
from pti_core.storage.known_runs import RunError

QUICK = TrainingConfig(samples=200, views=2, epochs=20, drawing_steps=5)


@pytest.fixture(scope="module")
def statistics(tiny_generator):
    return w_statistics(tiny_generator, 1000)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def trained(tiny_generator, told):
    return train_encoder(
        tiny_generator, load_lpips(), QUICK, on_training=lambda stage, share: told.append((stage, share))
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache folder that is empty."""
    monkeypatch.setenv("PTI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load_generator(tiny_checkpoint)


def test_it_knows_more_of_samples_it_has_never_seen_than_w_avg_does(trained, told):
    figures = trained.figures
    assert figures.w_error < 0.75
    assert figures.lpips_encoder < 0.95 * figures.lpips_w_avg
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["samples", "w", "drawing", "held out"]


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_own_numbers_alone(tiny_generator):
    config = dataclasses.replace(QUICK, samples=40, epochs=2, drawing_steps=2)
    torch.manual_seed(5)
    first = train_encoder(tiny_generator, load_lpips(), config).encoder.state_dict()
    after = torch.rand(3)
    torch.manual_seed(6)
    second = train_encoder(tiny_generator, load_lpips(), config).encoder.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = train_encoder(tiny_generator, load_lpips(), dataclasses.replace(config, seed=1)).encoder.state_dict()
    assert not torch.equal(first["output.weight"], other["output.weight"])
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_a_sample_is_the_same_whatever_it_is_drawn_with(tiny_generator, statistics):
    w, images = draw(tiny_generator, statistics, [3, 4, 5], "x", 0)
    alone_w, alone = draw(tiny_generator, statistics, [4], "x", 0)
    torch.testing.assert_close(alone_w[0], w[1])
    torch.testing.assert_close(alone[0], images[1], atol=1e-5, rtol=1e-5)
    found = list(sampled_features(tiny_generator, statistics, lambda x: x, range(20), 2, "x", 0))
    assert [len(w) for w, _ in found] == [8, 8, 4]
    torch.testing.assert_close(found[0][0][4], w[1])
    torch.testing.assert_close(found[0][1][4, 0].float(), images[1], atol=1e-3, rtol=1e-3)


def test_another_view_stays_an_image_and_comes_from_its_stream():
    image = torch.rand(3, 32, 32) * 2 - 1
    views = [augment(image, torch.Generator().manual_seed(i)) for i in range(40)]
    again = [augment(image, torch.Generator().manual_seed(i)) for i in range(40)]
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    assert all(view.shape == image.shape and view.abs().max() <= 1 for view in views)
    assert len({view.sum().item() for view in views}) == 40
    assert augment(image[:1], torch.Generator().manual_seed(0)).shape == (1, 32, 32)


@pytest.mark.parametrize(("channels", "classes"), [(1, 0), (3, 4)])
def test_other_generators(channels, classes):
    torch.manual_seed(0)
    layers = {"channel_base": 256, "channel_max": 16}
    generator = StyleGAN2(8, classes, 12, 32, channels, synthesis_kwargs=layers)
    config = TrainingConfig(samples=24, views=2, epochs=1, drawing_steps=1)
    trained = train_encoder(generator.eval(), load_lpips(), config)
    images = torch.rand(2, channels, 32, 32) * 2 - 1
    assert encoded_start(trained.encoder, generator, images, load_lpips()).shape == (2, 1, 12)


def test_a_training_that_is_stopped_ends_and_writes_nothing(tiny_checkpoint, cache):
    stop_all()
    try:
        with pytest.raises(Stopped):
            making.make(tiny_checkpoint, 64, 2)
    finally:
        allow_all()
    assert not cache.exists()


@pytest.mark.parametrize(("error", "said"), [(1.2, True), (0.4, False), (None, False)])
def test_an_encoder_that_knows_nothing_is_kept_with_a_remark(trained, loaded, tiny_checkpoint, cache, error, said):
    notes = trained.notes(QUICK)
    notes["held_out"].pop("w_error")
    notes["held_out"] |= {} if error is None else {"w_error": error}  # those of before may lack it
    save_encoder(trained.encoder, loaded.sha256, notes)
    found = making.make(tiny_checkpoint, 64, 2)
    assert (found["remark"] is not None) == said
    assert not found["trained"]


def test_a_trained_encoder_that_knows_nothing_gets_not_into_the_cache(tiny_checkpoint, loaded, cache, tmp_path):
    few = {"samples": 16, "drawing_steps": 0, "overwrite": True}
    made = making.make(tiny_checkpoint, **few)
    assert made["held_out"]["w_error"] >= 1
    assert made["path"] is made["sha256"] is None
    assert made["trained"]
    assert "not kept" in made["remark"] and "more samples than 16" in made["remark"]
    assert "searches start at w_avg as before" in made["remark"]
    assert "not kept" in made["markdown"]
    assert find_encoder(loaded.sha256) is None

    there = making.make(tiny_checkpoint, folder=str(tmp_path / "here"), **few)
    assert there["path"] == str(tmp_path / "here" / f"{loaded.sha256}.safetensors")
    assert "no nearer" in there["remark"]

    cache.mkdir(parents=True)
    before = cache / f"{loaded.sha256}.safetensors"
    before.write_bytes(b"a better one")
    assert f"the encoder that was there stays ({before})" in making.make(tiny_checkpoint, **few)["remark"]
    assert before.read_bytes() == b"a better one"


def test_file_round_trip(trained, loaded, cache):
    path = save_encoder(trained.encoder, loaded.sha256, trained.notes(QUICK))
    assert path == cache / f"{loaded.sha256}.safetensors" == find_encoder(loaded.sha256)
    found = read_encoder(path, loaded)
    assert found.notes["held_out"]["samples"] == 64
    assert found.notes["training"]["seed"] == 0
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected, w = trained.encoder.w_of(images, load_lpips()), found.encoder.w_of(images, load_lpips())
    assert (w - expected).norm() < 0.02 * (expected - trained.encoder.w_avg).norm()  # float16
    assert [p.name for p in cache.iterdir()] == [path.name]


def damaged(path, how):
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    if how == "truncated":
        return path.write_bytes(content[: len(content) // 2])
    if how == "text":
        return path.write_bytes(b"<html>")
    if how == "format":
        metadata["format"] = "something/2"
    if how == "foreign":
        metadata["generator_sha256"] = "0" * 64
    if how == "architecture":
        metadata["architecture"] = metadata["architecture"].replace('"hidden": 640', '"hidden": 1000000000')
    if how == "resolution":
        metadata["architecture"] = metadata["architecture"].replace('_resolution": 32', '_resolution": 64')
    if how == "shape":
        tensors["output.bias"] = tensors["output.bias"][:-1].clone()
    if how == "missing":
        del tensors["w_std"]
    if how == "nan":
        tensors["output.bias"][0] = torch.nan
    return safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("truncated", "damaged or truncated"),
        ("text", "damaged or truncated"),
        ("format", "'something/2'"),
        ("foreign", "000000000000…"),
        ("architecture", "damaged or truncated"),
        ("resolution", "another architecture"),
        ("shape", "'output.bias'"),
        ("missing", "'w_std'"),
        ("nan", "NaN"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_sentence(trained, loaded, tmp_path, how, text):
    path = save_encoder(trained.encoder, loaded.sha256, {}, tmp_path)
    damaged(path, how)
    with pytest.raises(EncoderError, match=text) as error:
        read_encoder(path, loaded)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_auto_falls_back_to_w_avg_and_encoder_says_how_to_get_one(loaded, cache):
    assert encoder_for(loaded, "auto") is None
    assert encoder_for(loaded, "w_avg") is None
    with pytest.raises(EncoderError, match=r"pti train-encoder .*tiny\.safetensors"):
        encoder_for(loaded, "encoder")


def test_the_published_preset_starts_at_w_avg():
    assert configure("paper").pivot.start == "w_avg"
    assert configure("fast").pivot.start == configure("demo").pivot.start == "auto"


def test_the_packaged_encoder_belongs_to_the_packaged_generator(cache):
    loaded = load_generator("pocket")
    found = encoder_for(loaded, "auto")
    assert Path(found.where).parent == files.PACKAGED
    assert len(found.content) < 5 * 2**20
    statistics, lpips = w_statistics(loaded.generator, 1000), load_lpips()
    w, images = draw(loaded.generator, statistics, range(4), "test of the encoder", 0)
    start = encoded_start(found.encoder, loaded.generator, images, lpips)[:, 0]
    assert ((start - w).norm(dim=1) < (statistics.w_avg - w).norm(dim=1)).all()


def test_the_start_is_never_worse_than_w_avg(trained, tiny_generator, statistics):
    lpips, images = load_lpips(), torch.rand(4, 3, 32, 32) * 2 - 1  # nothing that the generator draws
    w = encoded_start(trained.encoder, tiny_generator, images, lpips)
    average = trained.encoder.w_avg.expand(4, 1, -1)
    drawn = [tiny_generator.synthesis(x.expand(-1, tiny_generator.num_ws, -1)).clamp(-1, 1) for x in (w, average)]
    distances = [lpips(image, images) for image in drawn]
    assert (distances[0] <= distances[1] + 1e-6).all()


def test_a_search_that_starts_at_the_true_w_stays_near_it(tiny_generator, statistics):
    w, images = draw(tiny_generator, statistics, range(3), "near", 0)
    config = PivotConfig(steps=20, noise_weight=10.0, lr=0.01, w_noise=0.0)

    def distance(start):
        found = find_pivots(tiny_generator, images, [0, 1, 2], config, statistics, load_lpips(), start=start)
        return (found.w[:, 0] - w).norm(dim=1)

    assert (distance(w[:, None]) < 0.5 * distance(None)).all()


def test_starts_in_w_plus_and_starts_that_do_not_fit(tiny_generator, statistics):
    w, images = draw(tiny_generator, statistics, range(2), "near", 0)
    config = PivotConfig(steps=1, space="w+")

    def search(start):
        return find_pivots(tiny_generator, images, [0, 1], config, statistics, load_lpips(), start=start)

    assert search(w[:, None]).w.shape == (2, tiny_generator.num_ws, tiny_generator.w_dim)
    for wrong in (w, w[:1, None], w[:, None, :-1], w[:, None].expand(-1, 2, -1)):
        with pytest.raises(ValueError, match="starts of shape"):
            search(wrong)


def frozen(dataset, output, checkpoint, **settings):
    return freeze(str(dataset), str(output), checkpoint, configure("demo", QUICK_SETTINGS | settings), shard_size=3)


def test_a_run_records_its_encoder_and_another_encoder_is_another_run(
    trained, loaded, tiny_checkpoint, dataset, tmp_path, cache
):
    data, out = dataset(2), tmp_path / "out"
    without = frozen(data, out, tiny_checkpoint)
    assert without.encoder_sha256 is None
    path = save_encoder(trained.encoder, loaded.sha256, {})
    with_it = frozen(data, out, tiny_checkpoint)
    assert with_it.name != without.name
    save_encoder(trained.encoder, loaded.sha256, {"note": "a third one"})
    says = rf"but another encoder \({with_it.encoder_sha256[:12]}…, now .*or go on with that one by the encoder that it"
    with pytest.raises(RunError, match=says):
        freeze(str(data), str(out), tiny_checkpoint, with_it.config, existing="extend")
    save_encoder(trained.encoder, loaded.sha256, {})
    assert any("another encoder" in remark for remark in with_it.remarks)
    content = with_it.store.read_config(with_it.name)
    assert content["encoder"]["sha256"] == with_it.encoder_sha256 == read_encoder(path, loaded).sha256
    assert frozen(data, out, tiny_checkpoint).name == with_it.name
    at_average = frozen(data, out, tiny_checkpoint, **{"pivot.start": "w_avg"})
    assert at_average.encoder_sha256 is None

    first = invert_shard(with_it, 0)
    assert first["counts"]["pivots"] == 2
    assert any_engine_for(with_it).encoder is not None
    assert any_engine_for(without).encoder is None
    rows = {}
    for run in (with_it, at_average):
        if run is at_average:
            invert_shard(run, 0)
        rows[run.name] = run.store.read("pivots", run=run.name).sort_values("image_id")
    w = [np.stack(table["w"].tolist()) for table in rows.values()]
    assert np.abs(w[0] - w[1]).max() > 0.01  # the start matters

    save_encoder(trained.encoder, loaded.sha256, {"note": "another file"})
    assert frozen(data, out, tiny_checkpoint).name not in (with_it.name, without.name)


def engine_there(run):
    """The engine of a run in a process that begins now."""
    forget_engine()
    return any_engine_for(load_run(str(run.store.root), run.name))


def test_a_run_goes_on_where_its_encoder_was_not_trained(trained, loaded, tiny_checkpoint, dataset, tmp_path, cache):
    data, out = dataset(2), tmp_path / "out"
    path = save_encoder(trained.encoder, loaded.sha256, {})
    run = frozen(data, out, tiny_checkpoint)
    at_average = frozen(data, out, tiny_checkpoint, **{"pivot.start": "w_avg"})
    required = frozen(data, out, tiny_checkpoint, **{"pivot.start": "encoder"})
    assert len({run.name, at_average.name, required.name}) == 3
    expected = engine_there(run).encoder.state_dict()
    for change in (lambda: save_encoder(trained.encoder, loaded.sha256, {"note": "another file"}), path.unlink):
        change()
        found = engine_there(run).encoder.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    # The same commands find their runs again, also after an overwriting one was cut off; others start there too.
    run.store.clear_run(run.name)
    for existing in ("overwrite", "resume", "extend"):
        config = configure("demo", QUICK_SETTINGS | {"batch": 3})
        again = freeze(str(data), str(out), tiny_checkpoint, config, shard_size=3, existing=existing)
        assert (again.name, again.encoder_sha256) == (run.name, run.encoder_sha256)
    assert frozen(data, out, tiny_checkpoint, **{"pivot.start": "encoder"}).name == required.name
    assert frozen(data, out, tiny_checkpoint, **{"pivot.start": "w_avg"}).name == at_average.name
    assert frozen(data, out, tiny_checkpoint, **{"tuning.steps": 3}).encoder_sha256 == run.encoder_sha256
    assert engine_there(again).encoder is not None
    assert not path.exists()


def test_of_several_encoders_that_of_the_jobs_newest_run_is_taken(
    trained, loaded, tiny_checkpoint, dataset, tmp_path, cache
):
    data, out = dataset(2), tmp_path / "out"
    runs = []
    for note in range(3):
        path = save_encoder(trained.encoder, loaded.sha256, {"note": note})
        runs.append(frozen(data, out, tiny_checkpoint, **{"tuning.steps": 2 + note // 2}))
    path.unlink()
    assert len({run.encoder_sha256 for run in runs}) == 3
    assert frozen(data, out, tiny_checkpoint, **{"tuning.steps": 2}).name == runs[1].name
    assert frozen(data, out, tiny_checkpoint, **{"tuning.steps": 3}).name == runs[2].name
    assert frozen(data, out, tiny_checkpoint, **{"tuning.steps": 4}).encoder_sha256 == runs[2].encoder_sha256


def test_an_encoder_that_is_nowhere_or_damaged_is_one_sentence(
    trained, loaded, tiny_checkpoint, dataset, tmp_path, cache
):
    data, out = dataset(2), tmp_path / "out"
    path = save_encoder(trained.encoder, loaded.sha256, {})
    run = frozen(data, out, tiny_checkpoint)
    content = path.read_bytes()
    kept = out / "encoders" / loaded.sha256 / f"{run.encoder_sha256}.safetensors"
    assert kept.read_bytes() == content

    def refused(text):
        with pytest.raises(RunError, match=text) as error:
            engine_there(run)
        assert "\n" not in str(error.value)

    save_encoder(trained.encoder, loaded.sha256, {"note": "another file"})
    kept.write_bytes(path.read_bytes())
    refused(r"encoders/.*\.safetensors: SHA-256 .* that of its name expected; copy")
    kept.write_bytes(b"<html>")
    refused(r"damaged or truncated \(.*\); copy the one there")
    with kept.open("wb") as file:
        file.truncate(files.LARGEST + 1)
    refused("at most 67,108,864 expected")
    kept.unlink()  # a root of before
    refused("not the one that the run was frozen with")
    path.unlink()
    refused(r"no encoder on this machine; `pti train-encoder .*copy")
    assert frozen(data, out, tiny_checkpoint).name != run.name
    path.write_bytes(content)
    assert frozen(data, out, tiny_checkpoint).name == run.name
    assert kept.read_bytes() == content  # whoever has it brings it


@pytest.mark.slow
def test_the_flow_on_a_server_leaves_an_encoder_and_its_figures(server, tiny_checkpoint, tmp_path):
    parameters = {"generator": tiny_checkpoint, "samples": 64, "drawing_steps": 2, "folder": str(tmp_path / "made")}
    result = server.run("train-encoder/demo", parameters)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = (tmp_path / "made").iterdir()
    assert read_encoder(path, load_generator(tiny_checkpoint)).notes["training"]["samples"] == 64
    deployed = server.api("GET", "deployments/name/train-encoder/demo")
    run = server.flow_runs(deployment_id={"any_": [deployed["id"]]})[-1]
    shown = server.artifacts(run["id"])
    assert shown["train-encoder-progress"]["data"] == 100
    assert "held-out samples" in shown["encoder"]["data"]
