"""What is shown of an alpha study: findings with figures, of what was asked for, on a page that loads nothing."""

from __future__ import annotations

import html
import io
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_SETTINGS
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pti_core.alpha import plots, report, shards
from pti_core.alpha.findings import RATIO, drift_table, findings, interval, paired, path_curves
from pti_core.alpha.stored import Request
from pti_core.alpha.study import AlphaError
from pti_core.freezing.freeze import freeze
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard

REQUEST = Request([0.0, 30.0, 60.0, "off"], 2)
HOSTILE = "<img src=x onerror=a()>|[x](y)_*.png"
IDS = ["0.png", "1.png", "2.png", HOSTILE]


@pytest.fixture(scope="module")
def studied(pictures, tiny_checkpoint, tmp_path_factory):
    """A study that the tests of this file share: they may publish it, not change it."""
    return study(tmp_path_factory.mktemp("alpha"), dict(zip(IDS, pictures, strict=False)), tiny_checkpoint, REQUEST)


def study(folder, images, checkpoint, request):
    """A run of these images, inverted and studied; and the folder of the images."""
    (folder / "data").mkdir()
    for name, picture in images.items():
        Image.fromarray(picture).save(folder / "data" / name)
    run = freeze(str(folder / "data"), str(folder / "out"), checkpoint, configure("demo", QUICK_SETTINGS))
    inverted = invert_shard(run, 0)
    measure_shard(run, 0, inverted["files"], inverted["seconds"])
    shards.study_shard(run, 0, list(images), request)
    return run, folder / "data"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert not {name for name, _ in attrs} & {"onerror", "onload", "onclick", "style"}


@pytest.mark.parametrize("alphas", [["30"], ["30", "30", "30.0"]])
def test_alphas_that_allow_no_statement_are_told_of_in_the_terminal_on_the_page_and_on_the_server(studied, alphas):
    run, _ = studied
    options = [text for alpha in alphas for text in ("--alpha", alpha)]
    result = CliRunner().invoke(app, ["alpha-study", run.store.root, *options])
    assert result.exit_code == 0, result.output
    assert "everything is done already" in result.output
    advice = "study 30 and “off” at least, or leave the alphas out to study all."
    assert advice in result.output
    assert advice in html.unescape(page_of(run))
    assert advice in report.publish(run, {0: IDS}, Request([30.0], 2)).markdown


def page_of(run):
    return run.store.files.get(f"runs/{run.name}/report/alpha/index.html", "no page").decode()


def test_page_table_and_markdown_say_each_finding_with_its_figures(studied):
    run, _ = studied
    found = report.publish(run, {0: IDS}, REQUEST)
    assert (found.images, found.remarks) == (4, [])
    table = pd.read_csv(found.table)
    assert list(table["images"]) == [4] * len(table)
    assert {"at alpha 60, G(w_r) is almost G(w_z)", "tuning with alpha 30 drifts less at w_z than without"} <= {
        text.partition(":")[0] for text in table["statement"]
    }
    page = html.unescape(page_of(run))
    for row in table.itertuples():
        assert row.statement in page
        assert row.statement in found.markdown
        assert any(line.startswith(f"{row.statement}: {row.verdict}") for line in found.findings)
    assert "](" not in found.markdown.replace("\\]\\(", "")  # no links, no pictures
    for path in found.pictures.values():
        assert run.store.files.get(path, "no picture")[:4] == b"\x89PNG"


def test_names_of_images_never_become_markup_and_nothing_is_loaded(studied):
    run, _ = studied
    report.publish(run, {0: IDS}, REQUEST)
    page = Page(page_of(run))
    assert page.tags.count("img") == 2 + 4  # plots, strips
    assert "script" not in page.tags
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "default-src 'none'" in page_of(run)


def test_it_is_about_what_was_asked_for_whatever_else_the_tables_hold(studied):
    run, _ = studied
    found = report.publish(run, {0: ["1.png"]}, Request([30.0, "off"], 1))
    assert found.images == 1
    assert "1 image, 1 sample z an image, preset demo; alpha 30 and without the regulariser." in page_of(run)
    assert "1.png" in page_of(run)
    assert "0.png" not in page_of(run)
    near = run.store.read("alpha_nearness", run=run.name)
    one = near[(near["image_id"] == "1.png") & (near["alpha"] == 30)]
    shown = [line for line in found.markdown.splitlines() if line.startswith("| 30 |")]
    assert any(f"{value:.4f}" in shown[0] for value in one["lpips"])
    assert len(shown) == 2  # nearness, drift
    assert "| 60 |" not in found.markdown
    with pytest.raises(AlphaError, match=r"none of 1 images was studied.*not studied yet"):
        report.publish(run, {0: ["1.png"]}, Request([45.0], 1))


def test_an_image_that_was_left_out_is_a_remark(pictures, tiny_checkpoint, tmp_path):
    images = {"0.png": pictures[0], HOSTILE: pictures[1]}
    run, data = study(tmp_path, images, tiny_checkpoint, Request([30.0], 1))
    (data / HOSTILE).unlink()
    request = Request([30.0, 45.0], 1)
    shards.study_shard(run, 0, ["0.png", HOSTILE], request)
    found = report.publish(run, {0: ["0.png", HOSTILE]}, request)
    assert found.images == 1
    assert [remark.startswith(f"left out: image {HOSTILE!r} cannot be read") for remark in found.remarks] == [True]
    assert "<img src=x" not in page_of(run)
    assert "<img" not in found.markdown.replace("\\<img", "")
    assert "|[x]" not in found.markdown


def test_verdicts():
    below = pd.Series([-0.5, -0.4, -0.6, -0.45, -0.55, -0.52])
    assert paired("x", below).verdict == "borne out"
    assert paired("x", -below).verdict == "contradicted"
    assert paired("x", pd.Series([-1.0, 1.0, -0.9, 0.9, 0.1, -0.1])).verdict == "not decided"
    few = "x: not decided (5 images: mean difference of LPIPS -0.5000 without an interval, which takes 6 images)"
    assert paired("x", below.head(5)).sentence() == few
    for mean, verdict in ((0.1, "contradicted"), (0.5, "borne out"), (0.9, "contradicted"), (0.76, "not decided")):
        ratios = pd.Series([mean - 0.04, mean + 0.02, mean - 0.01, mean + 0.03, mean + 0.01, mean - 0.01])
        assert paired("x", ratios, RATIO, 0.25, 0.75).verdict == verdict


@pytest.mark.parametrize("images", [6, 8, 20])
def test_of_a_hundred_studies_of_nothing_about_five_claim_something(images):
    """91 to 98 % of the intervals of 400 hold the true mean; by chance 95 % come out as 93 to 97."""
    random = np.random.default_rng(images)
    intervals = [interval(random.normal(size=images)) for _ in range(400)]
    assert 0.91 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def made_up(at_30, at_60, beyond=0.0):
    """Both tables of six images: nearness falls from 0.6 to these shares of it; drift is 0.1, less where tuned."""
    near, drift = [], []
    for i, image_id in enumerate("abcdef"):
        for alpha, share, t in ((0.0, 1.0, 0.0), (30.0, at_30, 0.5), (60.0, at_60, 1.0)):
            near.append({"image_id": image_id, "seed": 1, "alpha": alpha, "t": t, "lpips": 0.6 * share + 0.001 * i})
        for tuned in (30.0, math.nan):
            for where, alpha, t in (("interpolated", 30.0, 0.5), ("interpolated", 90.0, 1.5), ("wz", math.nan, 1.0)):
                lpips = 0.1 - (0.03 + 0.001 * i) * (tuned == 30.0) + (beyond if t > 1 and tuned == 30.0 else 0)
                row = {"image_id": image_id, "tuned_alpha": tuned, "where": where, "seed": 1, "alpha": alpha}
                drift.append(row | {"t": t, "lpips": lpips})
    return pd.DataFrame(near), pd.DataFrame(drift)


@pytest.mark.parametrize(
    ("at_30", "at_60", "compromise", "almost"),
    [
        (0.5, 0.1, "borne out", "borne out"),
        (0.9, 0.8, "contradicted", "contradicted"),  # monotone, but far from w_z
        (0.1, 0.05, "contradicted", "borne out"),
    ],
)
def test_a_curve_that_only_falls_does_not_bear_out_the_paper(at_30, at_60, compromise, almost):
    verdicts = {f.statement.partition(",")[0]: f.verdict for f in findings(*made_up(at_30, at_60))}
    assert verdicts["at alpha 30"] == compromise
    assert verdicts["at alpha 60"] == almost


def test_the_path_ends_at_w_z():
    """Tuned with 30 the generator drifts far more beyond w_z: that is no part of the statement, nor of the table."""
    near, drift = made_up(0.5, 0.1, beyond=5.0)
    (along,) = (f for f in findings(near, drift) if "along the path" in f.statement)
    assert along.verdict == "borne out"
    assert along.mean == pytest.approx(-0.0325)
    assert drift_table(drift).loc["30", "old against new on the path to w_z"] < 0.1


def test_places_of_the_drift_plot_lie_at_their_t():
    curves = path_curves(made_up(0.5, 0.1)[1])
    assert list(curves.index) == [(30.0, 0.5), (np.inf, 1.0), (90.0, 1.5)]
    figure = plots.drift_plot(made_up(0.5, 0.1)[1])
    assert all(list(line.get_xdata()) == [0.5, 1.0, 1.5] for line in figure.axes[0].lines[:2])
    assert Image.open(io.BytesIO(plots.as_png(figure))).width > 600
