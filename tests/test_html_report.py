"""The report's page: what it is made of, and what it costs to make again."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reported import HOSTILE, finished, parsed, reported
from typer.testing import CliRunner

from flows.cli import app
from pti_core.html_report import page, write_page
from pti_core.html_report.charts import nice_ticks
from pti_core.html_report.figures import choose, gather


@pytest.fixture(scope="module")
def made(pictures, tiny_checkpoint, tmp_path_factory):
    return reported(pictures, tiny_checkpoint, tmp_path_factory.mktemp("report"))


def test_the_page_holds_figures_and_pictures_of_all_images(made):
    elements, data = parsed(made.path)
    assert sorted(data["ids"]) == sorted(made.names)
    metrics = made.run.store.read("metrics", run=made.run.name)
    for stage in ("pivot", "tuned", "stored"):
        of_stage = metrics[metrics["stage"] == stage].set_index("image_id")
        for name in ("lpips", "mse", "psnr", "ssim"):
            expected = of_stage.loc[data["ids"], name]
            assert data["values"][f"{stage}.{name}"] == pytest.approx(list(expected), rel=1e-4)
    assert "stored.ms_ssim" not in data["measures"]  # not taken of such small images
    layout = data["layout"]
    for i, image_id in enumerate(data["ids"]):
        sprite = np.asarray(Image.open(io.BytesIO(base64.b64decode(elements.scripts[f"sprite-{i}"]))).convert("RGB"))
        assert sprite.shape == (layout["height"], layout["width"], 3)
        pivot = made.run.store.read("pivots", run=made.run.name, filters=[("image_id", "==", image_id)]).iloc[0]
        target = made.run.read_input(pivot["uri"], image_id, 32).pixels
        shots = sprite[:32, :128].reshape(32, 4, 32, 3).swapaxes(0, 1).astype(float)
        assert np.abs(shots[0] - target).mean() < 8  # WebP
        errors = [np.square((shot - target) / 127.5).mean() for shot in shots[1:]]
        measured = [data["values"][f"{stage}.mse"][i] for stage in ("pivot", "tuned", "stored")]
        assert errors == pytest.approx(measured, rel=0.15)
        middle = layout["strengths"].index(0) * 32  # an edit of strength 0 is none
        for strip, shot in ((0, 1), (1, 3), (2, 1), (3, 3)):
            picture = sprite[32 * (1 + strip) : 32 * (2 + strip), middle : middle + 32].astype(float)
            assert np.abs(picture - shots[shot]).mean() < 8


def test_medians_rejects_and_changed_settings_are_on_the_page(made):
    text = made.path.read_text()
    stored = made.run.store.read("metrics", run=made.run.name).query("stage == 'stored'")
    assert f"<td>{stored['lpips'].median():.4f}</td>" in text
    assert f"<td>{stored['psnr'].median():.2f}</td>" in text
    rejects = gather(made.run).rejects
    assert [(group["count"], sorted(group["images"])) for group in rejects] == [(3, ["<b>c.png", "a.png", "b.png"])]
    assert "not an image" in rejects[0]["reason"]
    assert rejects[0]["reason"] in text
    changed = re.findall(r'<tr class="changed"><th>([\w.]+)</th><td>(.*?)</td><td>(.*?)</td>', text)
    assert ("tuning.steps", "4", "36") in changed
    assert {name for name, _, _ in changed} == {"batch", "tuning.steps", "pivot.steps", "pivot.w_samples"}


def test_names_of_images_and_messages_never_become_markup(made):
    elements, data = parsed(made.path)
    assert HOSTILE in data["ids"]
    drawn = len(data["ids"])
    assert [tag for tag, _ in elements.found].count("script") == drawn + 2  # data, sprites, one script
    assert not {"img", "b>c.png"} & {tag for tag, _ in elements.found}
    policy = next(a["content"] for tag, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for _, attributes in elements.found:
        assert not attributes.keys() & {"onclick", "onerror", "onload", "style"}
        assert not (attributes.get("src") or attributes.get("href", "#")).startswith(("http", "//", "x"))


def test_a_page_made_again_draws_nothing_and_a_redone_shard_is_drawn_again(dataset, tmp_path, tiny_checkpoint):
    run = finished(dataset(5), tmp_path / "out", tiny_checkpoint)
    seen = []
    assert write_page(run, 2, lambda done, total: seen.append((done, total))).drawn == 2
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert write_page(run, None).drawn == 5
    folder = tmp_path / "out/runs" / run.name / "report"
    files = sorted((folder / "pictures").iterdir())
    assert sorted(i for f in files for i in pq.read_table(f)["image_id"].to_pylist()) == [f"{i}.png" for i in range(5)]
    stamps = [f.stat().st_mtime_ns for f in files]
    first = (folder / "index.html").read_bytes()
    write_page(run, None)
    assert (folder / "index.html").read_bytes() == first
    assert [f.stat().st_mtime_ns for f in files] == stamps
    # the marker tells that the shard has other results now
    marker = run.store.marker(run.name, 0)
    for file in marker["files"]:
        file["sha256"] = "0" * 64
    run.store.mark_done(run.name, 0, {k: v for k, v in marker.items() if k not in ("run", "shard")})
    write_page(run, None)
    assert [f.stat().st_mtime_ns != stamp for f, stamp in zip(files, stamps, strict=True)] == [True, False]
    # a damaged file of pictures is made anew
    files[1].write_bytes(b"PAR1 cut off")
    write_page(run, None)
    assert (folder / "index.html").read_bytes() == first


def test_half_of_the_chosen_are_the_worst_and_a_target_that_is_gone_is_grey(dataset, tmp_path, tiny_checkpoint):
    data = dataset(8)
    run = finished(data, tmp_path / "out", tiny_checkpoint)
    figures = gather(run)
    worst = {  # by some measure
        column.idxmin() if measure.higher_is_better else column.idxmax()
        for name, measure in figures.columns.items()
        if not name.startswith("tuned.") and name != "seconds"
        for column in [figures.images[name]]
    }
    for count in (2, 4, 7):
        first = set(choose(figures, count)[: (count + 1) // 2])
        assert first <= worst or worst <= first
        assert len(set(choose(figures, count))) == count
    assert choose(figures, 6) == choose(gather(run), 6)
    gone = choose(figures, 1)[0]
    (data / gone).unlink()
    report = write_page(run, 1)
    elements, loaded = parsed(Path(report.path))
    assert loaded["ids"][0] == gone
    assert len(loaded["ids"]) == 8  # all have their figures
    sprite = Image.open(io.BytesIO(base64.b64decode(elements.scripts["sprite-0"]))).convert("RGB")
    assert np.abs(np.asarray(sprite)[:32, :32].astype(int) - 128).max() < 16


def test_many_pictures_lie_beside_the_page(made, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EMBEDDED", 5)
    try:
        report = write_page(made.run)
        elements, data = parsed(made.path)
        assert "sprite-0" not in elements.scripts
        files = [made.path.parent / name for name in data["sprites"]]
        assert len(set(files)) == len(data["ids"]) == 9
        assert report.beside == sum(f.stat().st_size for f in files)
        assert {Image.open(f).size for f in files} == {(data["layout"]["width"], data["layout"]["height"])}
        result = CliRunner().invoke(app, ["report", made.run.store.root, "--one-file"])
        assert result.exit_code == 0, result.output
        assert "beside" not in result.output
        elements, data = parsed(made.path)
        assert data["sprites"] is None
        assert [f"sprite-{i}" in elements.scripts for i in range(9)] == [True] * 9
    finally:
        monkeypatch.undo()
        write_page(made.run)


def test_runs_without_measures_or_images_have_a_page(dataset, tmp_path, tiny_checkpoint):
    report = write_page(finished(dataset(3), tmp_path / "noop", tiny_checkpoint, "noop"))
    assert (report.images, report.drawn) == (3, 0)
    assert "inverts nothing" in Path(report.path).read_text()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_text("no image")
    report = write_page(finished(tmp_path / "bad", tmp_path / "none", tiny_checkpoint))
    assert (report.images, report.drawn) == (0, 0)
    assert "a.png" in Path(report.path).read_text()


def test_ticks_are_round_and_cover():
    assert nice_ticks(0, 1) == [0, 0.5, 1]
    assert nice_ticks(0.013, 0.071) == [0.02, 0.04, 0.06]
    assert nice_ticks(-3, 12) == [0, 5, 10]
    for low, high in np.random.default_rng(0).uniform(-5, 5, (200, 2)).cumsum(axis=1):
        ticks = nice_ticks(min(low, high), max(low, high))
        assert 2 <= len(ticks) <= 6


def test_the_command_says_where_the_page_is_and_what_is_wrong(made):
    def pti(*args):
        command = [sys.executable, "-m", "flows.cli", "report", made.run.store.root, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    result = pti()
    assert result.returncode == 0, result.stderr
    assert str(made.path) in result.stdout
    assert "9 images, 9 with pictures" in result.stdout
    result = pti("--images", "few")
    assert result.returncode == 1
    assert "--images 'few'" in result.stderr
    assert "Traceback" not in result.stderr
