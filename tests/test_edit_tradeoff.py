"""The study of distortion against editability, on a tiny generator; and the regression that sees an edit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK_SETTINGS

from pti_core.directions import make_direction, principal_components
from pti_core.editing.attributes import features, fit_attributes, usual_change
from pti_core.perceptual import load_lpips
from pti_core.sampling import w_statistics
from pti_core.studies.comparison import METHODS, WAYS, invert
from pti_core.studies.tradeoff import compare, summary


@pytest.fixture(scope="module")
def seen(tiny_generator):
    statistics = w_statistics(tiny_generator, 400)
    directions = principal_components(statistics, 2)
    return statistics, directions, fit_attributes(tiny_generator, statistics, load_lpips(), directions, 300)


def test_attributes_are_seen_in_images_that_they_were_not_learned_from(seen, tiny_generator):
    statistics, directions, attributes = seen
    w = statistics.samples[300:]  # beyond all that the fit has used
    with torch.no_grad():
        found = attributes(tiny_generator.synthesis(w[:, None].expand(-1, tiny_generator.num_ws, -1)))
    for i, direction in enumerate(directions):
        true = (w - statistics.w_avg) @ direction.vector / direction.sigma
        assert np.corrcoef(found[:, i], true)[0, 1] > 0.6
        assert attributes.r2[i] == pytest.approx(1 - float((found[:, i] - true).square().mean() / true.var()), abs=0.25)


def test_the_usual_change_is_what_an_edit_does_to_samples(seen, tiny_generator):
    statistics, directions, attributes = seen
    direction = directions[0]
    up, down = (usual_change(attributes, tiny_generator, statistics, direction, 0, 8, s) for s in (2.0, -2.0))
    assert 0.4 < up < 2.4  # a regression shrinks; it does not turn round
    assert -2.4 < down < -0.4
    less = usual_change(attributes, tiny_generator, statistics, direction, 0, 8, 0.5)
    assert less < up
    turned = replace(direction, vector=-direction.vector)
    with pytest.raises(ValueError, match=r"'pca-0' at strength 2 is not seen in the generator's samples"):
        usual_change(attributes, tiny_generator, statistics, turned, 0, 8, 2.0)


def test_features_count_layers_alike_whatever_the_resolution(tiny_generator):
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    small, large = features(load_lpips(), images), features(load_lpips(), images.repeat_interleave(2, 2))
    assert small.shape == large.shape == (2, 16 * (64 + 192 + 384 + 256 + 256))


def test_a_direction_of_some_layers_has_no_coordinate(seen, tiny_generator):
    statistics, directions, _ = seen
    coarse = make_direction("x", directions[0].vector, tiny_generator, statistics, "coarse")
    with pytest.raises(ValueError, match="'x' moves layers coarse; one that moves all expected"):
        fit_attributes(tiny_generator, statistics, load_lpips(), [coarse], 50)


def test_the_four_ways_of_one_data_set(dataset, tiny_checkpoint, tmp_path):
    settings = QUICK_SETTINGS | {"pivot.steps": 20, "tuning.steps": 15, "tuning.stop_lpips": 0.0}
    runs = invert(WAYS, str(dataset(2)), str(tmp_path), tiny_checkpoint, "demo", settings)
    assert [run.config.pivot.space for run in runs.values()] == ["w", "w", "w+"]
    assert runs["free"].config.locality.enabled is False
    rows, r2 = compare(runs, ["pca:0"], [-2.0, 2.0], samples=100)
    assert len(rows) == 2 * len(METHODS) * 2
    assert r2.keys() == {"pca-0"}
    in_w = rows[rows["method"] == "W"]
    np.testing.assert_allclose(in_w["correlation"], 1, atol=1e-6)
    np.testing.assert_allclose(in_w["gain"], 1, atol=1e-6)
    medians = summary(rows)
    assert list(medians.index) == list(METHODS)
    assert medians.loc["PTI", "distortion"] < medians.loc["W", "distortion"]
    of_wplus = rows[rows["method"] == "W+"].drop_duplicates("image_id").set_index("image_id")["distortion"]
    w_plus = runs["w+"].store.read("pivots", run=runs["w+"].name).set_index("image_id")["lpips"]
    np.testing.assert_allclose(of_wplus[w_plus.index], w_plus, atol=1e-4)

    again = invert(WAYS, str(tmp_path / "data"), str(tmp_path), tiny_checkpoint, "demo", settings)
    assert [run.name for run in again.values()] == [run.name for run in runs.values()]
    assert all(run.to_do().shards == [] for run in again.values())
