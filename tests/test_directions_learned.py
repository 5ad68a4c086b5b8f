"""Directions from labels: fitted on synthetic pivots whose true boundary is known."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch

from pti_core.directions import DirectionError
from pti_core.directions.learned import EACH, _logistic, _ridge, learn, read_scores


@pytest.fixture(scope="module")
def samples():
    """300 points in 16 dimensions and the true direction."""
    torch.manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(16), dim=0)
    return torch.randn(300, 16) * 2, true


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.float(), b, dim=0))


def test_two_scores_give_the_boundary_between_them(samples):
    w, true = samples
    learned = learn(w, (w @ true > 0).float(), 8.0, "labels")
    assert cosine(learned.vector, true) > 0.97
    assert "learned from 300 images; tells 9" in learned.remark  # above 90 %
    other = learn(w, torch.where(w @ true > 0, -3.0, 5.0), 8.0, "labels")  # any two numbers, towards the larger
    assert cosine(other.vector, true) < -0.97


def test_scores_give_the_slope(samples):
    w, true = samples
    torch.manual_seed(1)
    learned = learn(w, w @ true * 10 + torch.randn(300) + 100, 8.0, "labels")
    assert cosine(learned.vector, true) > 0.99
    assert "correlation 1.00" in learned.remark


def test_labels_that_mean_nothing_are_said_to_tell_nothing(samples):
    w, _ = samples
    torch.manual_seed(2)
    learned = learn(w[:100], torch.randn(100), 8.0, "labels")
    said = float(learned.remark.split("correlation ")[1].split()[0])
    assert abs(said) < 0.4


def test_a_rare_score_that_is_never_told_is_half_of_what_is_told(samples):
    w, _ = samples
    torch.manual_seed(4)
    labels = torch.zeros(100)
    labels[torch.randperm(100)[:4]] = 1
    said = float(learn(w[:100], labels, 8.0, "labels").remark.split("tells ")[1].split("%")[0])
    assert said < 75  # always the frequent one: 96 % of the images


def test_a_dozen_labels_in_many_dimensions_still_point_the_right_way():
    torch.manual_seed(3)
    true = torch.nn.functional.normalize(torch.randn(512), dim=0)
    w = torch.randn(12, 512) * 0.3
    sign = torch.tensor([1.0, -1.0] * 6)
    w = w + 4 * sign[:, None] * true  # labels that matter: the difference stands out, as a smile does
    assert cosine(learn(w, sign, 10.0, "labels").vector, true) > 0.8


def test_ridge_among_images_and_among_dimensions_agree_and_solve_their_equations(samples):
    w = samples[0].double()
    for x in (w[:10], w[:40]):
        y = torch.linspace(0, 1, len(x), dtype=torch.float64)
        weights, bias = _ridge(x, y)
        residual = y - x @ weights - bias
        centred = x - x.mean(0)
        torch.testing.assert_close(centred.T @ residual, weights)  # the gradient is zero: penalty 1
        assert float(residual.mean()) == pytest.approx(0, abs=1e-9)


def test_logistic_regression_ends_where_its_gradient_is_zero(samples):
    x = samples[0][:40].double()
    y = (torch.arange(40) % 3 == 0).double()
    weights, bias = _logistic(x, y)
    wrong = torch.sigmoid(x @ weights + bias) - y
    torch.testing.assert_close(x.T @ wrong + weights, torch.zeros(16, dtype=x.dtype), atol=1e-4, rtol=0)
    assert float(wrong.sum()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([1.0] * 10, "10 images of the run have a score, and not two different ones"),
        ([1.0, 1.0, 0.0, 0.0, 0.0], rf"\(3 with 0, 2 with 1\); at least {EACH} of each expected"),
        ([0.1, 0.5, 0.9], "3 images of the run have a score; at least 6 expected, label more"),
    ],
)
def test_too_few_labels_get_one_sentence(scores, says):
    with pytest.raises(DirectionError, match=says):
        learn(torch.randn(len(scores), 8), torch.tensor(scores), 1.0, "labels 'smile.csv'")


def test_tables_of_scores(tmp_path):
    frame = pd.DataFrame({"image_id": ["a/1.png", "2.png", "3.png"], "score": [1, 0, np.nan], "more": "x"})
    frame.to_csv(tmp_path / "s.csv", index=False)
    frame.to_parquet(tmp_path / "s.parquet")
    for name in ("s.csv", "s.parquet"):
        assert read_scores(f"{tmp_path}/{name}").to_dict() == {"a/1.png": 1.0, "2.png": 0.0}
    (tmp_path / "names.csv").write_text("image_id,score\n0001,1\nNA,0\n1e3,0\na,N/A\nb,\nc,null\n")
    assert read_scores(f"{tmp_path}/names.csv").to_dict() == {"0001": 1.0, "NA": 0.0, "1e3": 0.0}  # names are text
    nfd, nfc = (unicodedata.normalize(form, "Zoé.png") for form in ("NFD", "NFC"))
    for write in (lambda f: f.to_csv(tmp_path / "s.csv", index=False), lambda f: f.to_parquet(tmp_path / "s.parquet")):
        write(pd.DataFrame({"image_id": [nfd], "score": [1]}))
    for name in ("s.csv", "s.parquet"):
        assert read_scores(f"{tmp_path}/{name}").to_dict() == {nfc: 1.0}
    pd.DataFrame({"image_id": [1, 2], "score": [True, False]}).to_parquet(tmp_path / "bool.parquet")
    assert read_scores(f"{tmp_path}/bool.parquet").to_dict() == {"1": 1.0, "2": 0.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,score\na,1\n", "column 'image_id' is missing; there are image, score"),
        ("image_id,score\na,high\n", "image 'a' has a score that is no number"),
        ("image_id,score\na,1\na,0\n", "image 'a' has two scores"),
        ("", "cannot be read"),
    ],
)
def test_tables_that_do_not_fit(text, says, tmp_path):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DirectionError, match=says):
        read_scores(f"{tmp_path}/s.csv")
    (tmp_path / "s.txt").write_text("image_id,score\n")
    with pytest.raises(DirectionError, match=r".csv or .parquet expected"):
        read_scores(f"{tmp_path}/s.txt")
    with pytest.raises(DirectionError, match=r"nowhere.csv': no such file; check the path"):
        read_scores(f"{tmp_path}/nowhere.csv")
