"""Edits of a run: measures against a plain reference, pictures, resume, and what is refused."""

import shutil
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK_SETTINGS
from PIL import Image
from typer.testing import CliRunner

from pti_core.alpha.plans import chosen
from pti_core.directions import DirectionError
from pti_core.editing.identity import IdentityError, face_embedding
from pti_core.editing.pictures import picture_path
from pti_core.editing.plans import EditError, load_directions, plan
from pti_core.editing.report import publish
from pti_core.editing.shards import edit_shard
from pti_core.export import export_image, export_images
from pti_core.freezing.freeze import freeze
from pti_core.images import to_uint8
from pti_core.perceptual import load_lpips
from pti_core.presets import configure
from pti_core.runs import engine_for, read_stored
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.storage.known_runs import RunError

COLUMNS = "image_id direction layers strength distance lpips lpips_base correlation gain identity picture run shard"


def finish(data, root, generator, preset="demo", shard_size=2, **settings):
    """A finished run."""
    config = configure(preset, QUICK_SETTINGS | {"tuning.steps": 3, "measure.z_samples": 0} | settings)
    run = freeze(str(data), str(root), generator, config, shard_size=shard_size)
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return run


def do(root, *args, **kwargs):
    """Plan and edit; the plan, and how many edits each shard made."""
    planned = plan(str(root), *args, **kwargs)
    return planned, {s: edit_shard(planned.run, s, planned.request)["edits"] for s in planned.pending}


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, picture in zip(("a/0.png", "a/1.png", "b/2?.png"), pictures, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    (folder / "broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def finished(data, tiny_checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    finish(data, root, tiny_checkpoint)
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A run of three images in two shards, and one reject; a copy of its own."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def table(root):
    return pd.read_parquet(root / "edits").sort_values(["image_id", "direction", "strength"], ignore_index=True)


def test_table_and_pictures_are_what_the_stored_generators_draw(root):
    planned, made = do(root, None, ["pca:0", "sefa:1:layers=middle"], [-1.5, 2.0])
    assert made == {0: 8, 1: 4}
    rows, run = table(root), planned.run
    assert sorted(rows.columns) == sorted(COLUMNS.split())
    assert len(rows) == 12
    assert rows["identity"].isna().all()
    directions = {d.name: d for d in load_directions(run, planned.request)}
    engine, lpips = engine_for(run), load_lpips()

    def drawn(generator, ws, noise):
        with torch.no_grad():
            return to_uint8(generator.synthesis(ws, noise=noise).numpy())[0]

    def distance(a, b):
        a, b = (torch.from_numpy(x / 127.5 - 1).permute(2, 0, 1)[None].float() for x in (a, b))
        return lpips(a, b).item()

    for pivot in run.store.read("pivots", run=run.name).to_dict("records"):
        stored = read_stored(run, engine, pivot)
        for row in rows[rows["image_id"] == pivot["image_id"]].to_dict("records"):
            moved = stored.ws.clone()
            direction = directions[row["direction"]]
            for slot, vector in enumerate(direction.vector.expand(engine.generator.num_ws, -1)):
                moved[0, slot] += row["strength"] * direction.sigma * vector
            before, after = (drawn(stored.generator, ws, stored.noise) for ws in (stored.ws, moved))
            base, base_after = (drawn(engine.generator, ws, stored.noise) for ws in (stored.ws, moved))
            a, b = (x.astype(np.float64).ravel() for x in (after - before.astype(int), base_after - base.astype(int)))
            assert row["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-4)
            assert row["gain"] == pytest.approx((a @ a / (b @ b)) ** 0.5, rel=1e-4)
            assert row["lpips"] == pytest.approx(distance(before, after), abs=1e-4)
            assert row["lpips_base"] == pytest.approx(distance(base, base_after), abs=1e-4)
            farthest = (moved - stored.ws).norm(dim=2).max().item()
            assert row["distance"] == pytest.approx(farthest, rel=1e-4)
            assert np.array_equal(np.array(Image.open(root / row["picture"])), after)
            unedited = Image.open(root / picture_path(run.store, run.name, "unedited", row["image_id"], 0.0))
            assert np.array_equal(np.array(unedited), before)
    assert (rows["correlation"].abs() <= 1).all()
    assert (root / f"runs/{run.name}/edits/pca-0/b/2%3F.png/-1.5.png").is_file()  # on any file system


def test_a_generator_that_was_not_changed_edits_as_the_base_does(data, tiny_checkpoint, tmp_path):
    finish(data, tmp_path, tiny_checkpoint, **{"tuning.lr": 1e-12})
    do(tmp_path, None, ["pca:0"], [2.0])
    rows = table(tmp_path)
    np.testing.assert_allclose(rows["correlation"], 1, atol=1e-6)
    np.testing.assert_allclose(rows["gain"], 1, atol=1e-6)
    np.testing.assert_allclose(rows["lpips"], rows["lpips_base"], atol=1e-6)


def test_done_edits_are_not_done_again_and_others_are_added(root):
    first, _ = do(root, None, ["pca:0"], [2.0])
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png") if path.is_file()}
    again = plan(str(root), None, ["pca:0"], [2.0])
    assert (again.pending, again.left) == ([], (3, 3))
    assert again.request == first.request

    _, made = do(root, None, ["pca:0", "pca:1"], [2.0, 3.0])
    assert made == {0: 6, 1: 3}  # of pca:0 only strength 3
    edited = [path for path in times if "unedited" not in str(path)]
    assert [path for path in edited if path.stat().st_mtime_ns != times[path]] == []
    rows = table(root)
    assert len(rows) == len(rows.drop_duplicates(["image_id", "direction", "strength"])) == 12


def test_a_process_that_ended_half_way_is_continued(root):
    planned = plan(str(root), None, ["pca:0"], [1.0, 2.0])
    edit_shard(planned.run, 0, planned.request)
    (marker,) = root.rglob("edits/done/*.json")
    marker.unlink()  # ended before the last write
    again = plan(str(root), None, ["pca:0"], [1.0, 2.0])
    assert again.pending == [0, 1]
    assert [edit_shard(again.run, shard, again.request)["edits"] for shard in (0, 1)] == [0, 2]


def test_results_that_were_made_anew_are_edited_anew(root, data, tiny_checkpoint):
    do(root, None, ["pca:0"], [2.0])
    before = table(root)
    run = plan(str(root), None, ["pca:0"], [2.0]).run
    other = finish(data, root.parent / "other", tiny_checkpoint, **{"tuning.lr": 1e-2})
    for kind in ("pivots", "deltas"):  # of shard 0, from another tuning
        shutil.rmtree(root / f"{kind}/run={run.name}/shard=00000")
        source = root.parent / f"other/{kind}/run={other.name}/shard=00000"
        shutil.copytree(source, root / f"{kind}/run={run.name}/shard=00000")
    measure_shard(run, 0)
    planned, made = do(root, None, ["pca:0"], [2.0])
    assert (planned.pending, made) == ([0], {0: 2})
    after = table(root)
    assert len(after) == len(before)
    changed = before["lpips"] != after["lpips"]
    assert set(before["image_id"][changed]) == set(before["image_id"][before["shard"] == 0])


def test_a_direction_that_was_replaced_by_another_of_its_name(root, tmp_path):
    np.save(tmp_path / "smile.npy", np.eye(24)[0])
    old, _ = do(root, None, [f"{tmp_path}/smile.npy", "pca:0"], [2.0])
    before = table(root)
    np.save(tmp_path / "smile.npy", np.eye(24)[1])
    new, made = do(root, None, [f"{tmp_path}/smile.npy"], [2.0])
    assert made == {0: 2, 1: 1}
    after = table(root)
    smile = after["direction"] == "smile"
    assert (before["lpips"] != after["lpips"]).equals(smile)
    with pytest.raises(EditError, match=r"'smile' .* was replaced meanwhile; start these edits again"):
        edit_shard(new.run, 0, old.request)


def test_only_some_images_and_a_table_without_pictures(root):
    _, made = do(root, None, ["pca:0"], [2.0], images=["b/2?.png"], pictures=False)
    assert made == {1: 1}
    rows = table(root)
    assert rows["image_id"].tolist() == ["b/2?.png"]
    assert rows["picture"].isna().all()
    assert not list(root.rglob("edits/**/*.png"))
    do(root, None, ["pca:0"], [2.0])
    rows = table(root)
    assert len(rows) == 3
    assert all((root / picture).is_file() for picture in rows["picture"])


def test_images_are_found_by_names_as_a_mac_writes_them(pictures, tiny_checkpoint, tmp_path):
    nfd, nfc = (unicodedata.normalize(form, "Zoé.png") for form in ("NFD", "NFC"))
    (tmp_path / "data").mkdir()
    Image.fromarray(pictures[0]).save(tmp_path / "data" / nfd)
    root = str(tmp_path / "out")
    run = finish(tmp_path / "data", root, tiny_checkpoint)
    assert plan(root, None, ["pca:0"], images=[nfd, nfc]).request.images == [nfc]
    assert export_images(root, tmp_path / "faces", nfd).written == 1
    export_image(root, nfd, output=tmp_path / "g.safetensors")
    assert str(np.load(tmp_path / "g.safetensors.pivot.npz")["image_id"]) == nfc
    assert chosen(run, 1, [nfd]) == {0: [nfc]}


def test_shared_generators_and_pivots_in_w_plus_are_edited_too(data, tiny_checkpoint, tmp_path):
    finish(data, tmp_path, tiny_checkpoint, mode="multi", **{"pivot.space": "w+"})
    assert sum(do(tmp_path, None, ["pca:0:layers=coarse"], [2.0])[1].values()) == 3
    assert table(tmp_path)["layers"].tolist() == ["coarse"] * 3


def test_directions_learned_from_scores_of_the_run(root, tmp_path):
    ids = ["a/0.png", "a/1.png", "b/2?.png"]
    pd.DataFrame({"image_id": ids, "score": [1, 0, 0]}).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DirectionError, match=r"few.csv: 3 images of the run have a score \(2 with 0, 1 with 1\)"):
        plan(str(root), None, [f"learned:{tmp_path}/few.csv"], [2.0])
    pd.DataFrame({"image_id": ["x"], "score": [1]}).to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(DirectionError, match="none of its 1 images is in run"):
        plan(str(root), None, [f"learned:{tmp_path}/none.csv"], [2.0])


def test_edits_made_by_two_at_once_are_all_kept(root):
    first, second = (plan(str(root), None, [name], [2.0]) for name in ("pca:0", "pca:1"))
    began = []

    def meanwhile(now):
        if now.done and not began:  # what is in the table has been read
            began.append(edit_shard(second.run, 0, second.request)["edits"])

    assert edit_shard(first.run, 0, first.request, meanwhile)["edits"] == began[0] == 2
    assert table(root)["direction"].value_counts().to_dict() == {"pca-0": 2, "pca-1": 2}
    assert [plan(str(root), None, [name], [2.0]).pending for name in ("pca:0", "pca:1")] == [[1], [1]]


def test_a_learned_direction_moves_towards_high_scores(pictures, tiny_checkpoint, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i, picture in enumerate(pictures[:8]):
        Image.fromarray(picture).save(folder / f"{i}.png")
    run = finish(folder, tmp_path / "out", tiny_checkpoint, shard_size=8)
    pivots = run.store.read("pivots", run=run.name)
    w = np.stack(pivots["w"])
    scores = w[:, 3] * 10
    pd.DataFrame({"image_id": pivots["image_id"], "score": scores}).to_parquet(tmp_path / "third.parquet")
    planned = plan(str(tmp_path / "out"), None, [f"learned:{tmp_path}/third.parquet"], [2.0])
    (direction,) = load_directions(planned.run, planned.request)
    assert direction.name == "learned-third"
    assert np.corrcoef(w @ direction.vector.numpy(), scores)[0, 1] > 0.5
    assert "learned from 8 images; correlation" in planned.remarks[0]


def test_what_cannot_be_edited_is_said_in_one_sentence(root, data, tiny_checkpoint, tmp_path):
    run = plan(str(root)).run
    with pytest.raises(EditError, match=r"has no image 'a/7.png'; it has 3, for example 'a/"):
        plan(str(root), images=["a/0.png", "a/7.png"])
    with pytest.raises(EditError, match=r"'broken.png' was rejected by run"):
        plan(str(root), images=["broken.png"])
    with pytest.raises(RunError, match=f"no run 'other'.*{run.name}"):
        plan(str(root), "other")
    with pytest.raises(RunError, match="no run there"):
        plan(str(tmp_path / "empty"))
    np.save(tmp_path / "long.npy", np.ones(512))
    with pytest.raises(DirectionError, match=r"'long' has the shape \[512\]; this generator takes \[24\]"):
        plan(str(root), None, [f"{tmp_path}/long.npy"])
    for strength in (0.0, float("nan"), float("inf")):
        with pytest.raises(EditError, match="finite numbers other than 0 expected"):
            plan(str(root), None, ["pca:0"], [2.0, strength])
    shutil.rmtree(root / "deltas")
    with pytest.raises(EditError, match=r"has no deltas: 'deltas/run.*`pti run` again makes it once more"):
        plan(str(root))
    finish(data, tmp_path / "noop", tiny_checkpoint, "noop")
    with pytest.raises(RunError, match="engine 'noop'"):
        plan(str(tmp_path / "noop"))
    freeze(str(data), str(tmp_path / "early"), tiny_checkpoint, configure("demo", QUICK_SETTINGS))
    with pytest.raises(EditError, match="no finished shard yet"):
        plan(str(tmp_path / "early"))


def test_finished_shards_of_an_unfinished_run(root):
    shutil.rmtree(next(root.glob("deltas/run=*/shard=00001")))
    planned, made = do(root, None, ["pca:0"], [2.0])
    assert made == {0: 2}
    assert planned.remarks[0].startswith("1 shards of run")


def test_summary_and_sheet(root):
    planned, _ = do(root, None, ["pca:1", "pca:0"], [-1.0, 1.0])
    found = publish(planned.run, planned.request)
    assert [(row["direction"], row["strength"]) for row in found.medians] == [
        ("pca-1", -1.0),
        ("pca-1", 1.0),
        ("pca-0", -1.0),
        ("pca-0", 1.0),
    ]
    rows = table(root)
    chosen = rows[(rows["direction"] == "pca-0") & (rows["strength"] == 1.0)]
    assert found.medians[3]["lpips"] == pytest.approx(chosen["lpips"].median())
    assert found.medians[3]["identity"] is None
    picture = Image.open(found.sheet)
    # Five columns of 128, three lines; the first cell is the unedited image.
    assert picture.width == 2 * 16 + 5 * 128 + 2 * 18 + 2 * 4
    first = np.array(picture.crop((16, 42, 16 + 128, 42 + 128)).resize((32, 32), Image.Resampling.BOX), int)
    unedited = root / picture_path(planned.run.store, planned.run.name, "unedited", "a/0.png", 0.0)
    unedited = np.array(Image.open(unedited), int)
    assert np.abs(first - unedited).mean() < 12


def test_medians_of_many_edits_are_of_some_shards_and_all_images_are_counted(root, monkeypatch):
    planned, _ = do(root, None, ["pca:0"], [-1.0, 1.0])
    monkeypatch.setattr("pti_core.editing.report.MEDIANS_OF", 1)
    found, rows = publish(planned.run, planned.request), table(root)
    assert found.images == 3
    assert [row["images"] for row in found.medians] == [3, 3]
    chosen = rows[(rows["shard"] == 0) & (rows["strength"] == 1.0)]
    assert found.medians[1]["lpips"] == pytest.approx(chosen["lpips"].median())


def test_a_face_embedding_is_found_by_its_entry_point(root, tmp_path, monkeypatch):
    """A real installed package: a module and its metadata in a folder of sys.path."""
    site = tmp_path / "site"
    info = site / "toyface-1.0.dist-info"
    info.mkdir(parents=True)
    do(root, None, ["pca:0"], [2.0])
    assert table(root)["identity"].isna().all()
    (site / "toyface.py").write_text("def load():\n    return lambda images: images.mean(dim=1).flatten(1)\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyface\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pti.face_embedding]\ntoy = toyface:load\n")
    monkeypatch.syspath_prepend(site)
    face_embedding.cache_clear()
    try:
        planned, made = do(root, None, ["pca:0"], [2.0])
        assert (planned.pending, made) == ([0, 1], {0: 2, 1: 1})  # all again, now with what they were done without
        assert do(root, None, ["pca:0"], [2.0])[0].pending == []
        (info / "entry_points.txt").write_text("[pti.face_embedding]\ntoy = toyface:load\nother = toyface:load\n")
        face_embedding.cache_clear()
        with pytest.raises(IdentityError, match=r"other \(toyface:load\), toy \(toyface:load\); keep one"):
            face_embedding()
    finally:
        face_embedding.cache_clear()
        sys.modules.pop("toyface", None)
    for row in table(root).to_dict("records"):
        before = root / row["picture"].replace("/pca-0/", "/unedited/").replace("+2.png", "0.png")
        a, b = (np.array(Image.open(p)).mean(axis=2).ravel() / 127.5 - 1 for p in (root / row["picture"], before))
        assert row["identity"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-3)


def test_the_command_says_what_is_wrong_before_prefect_is_started(root):
    from flows.cli import app

    for arguments, says in (
        ([str(root), "--image", "a/7.png"], "has no image 'a/7.png'"),
        ([str(root), "-d", "pca:99"], "this generator has pca:0 to pca:23"),
        ([str(root), "-d", "nowhere.npy"], "check its path"),
        ([str(root), "-s", "0"], "strength 0"),
        ([str(root / "pivots")], "no run there"),
    ):
        result = CliRunner().invoke(app, ["edit", *arguments])
        assert result.exit_code == 1
        assert says in " ".join(result.output.split())
    do(root, None, ["pca:0"], [2.0])
    result = CliRunner().invoke(app, ["edit", str(root), "-d", "pca:0", "-s", "2"])
    assert result.exit_code == 0, result.output
    assert "everything is done already" in result.output
    assert "pca-0" in result.output
    assert "report/edits.png" in result.output
    assert Image.open(next(root.glob("runs/*/report/edits.png"))).width > 128
