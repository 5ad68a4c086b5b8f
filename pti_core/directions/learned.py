"""A direction from labels: a linear boundary on W between images that a person, or a classifier, has scored.

As in InterFaceGAN (Shen et al. 2020), with the pivots of a run in place of samples: two different scores make it a
logistic regression, more a ridge regression. Both are fitted with an L2 penalty on W scaled to unit distance, strong
enough that a dozen labels give a usable direction in 512 dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from pti_core.addresses import redact
from pti_core.directions.direction import DirectionError
from pti_core.given import read_given

EACH: Final = 3
"""Images that each of two scores needs."""

CONTINUOUS: Final = 6
"""Images that more than two scores need."""

FOLDS: Final = 5
PENALTY: Final = 1.0


@dataclass(frozen=True)
class Learned:
    """A boundary's normal, towards higher scores."""

    vector: Tensor  # [w_dim], of any length
    remark: str  # from what it was learned, and how well it tells images that it has not seen


def read_scores(uri: str) -> pd.Series[float]:
    """Scores by image_id of a `.csv` or `.parquet` with the columns image_id and score; rows without one are left out.

    Raises DirectionError for another file, other columns, text as a score and an image with two.
    """
    scores = read_given(uri, "labels", ["score"], DirectionError)["score"]
    scores = scores.dropna()
    if scores.index.has_duplicates:
        twice = scores.index[scores.index.duplicated()][0]
        raise DirectionError(f"labels {redact(uri)!r}: image {twice!r} has two scores; keep one")
    return scores


def learn(w: Tensor, scores: Tensor, scale: float, what: str) -> Learned:
    """Fit scores `[N]` on pivots w `[N, w_dim]`; `scale`: the unit of distance, w_std.

    Raises DirectionError, naming `what`, where there are too few labels or all are the same.
    """
    values, counts = scores.unique(return_counts=True)
    found = f"{what}: {len(scores)} images of the run have a score"
    if len(values) < 2:
        raise DirectionError(f"{found}, and not two different ones; label images with and without what is to change")
    if len(values) == 2 and int(counts.min()) < EACH:
        parts = ", ".join(f"{n} with {v:g}" for v, n in zip(values.tolist(), counts.tolist(), strict=True))
        raise DirectionError(f"{found} ({parts}); at least {EACH} of each expected, label more")
    if len(values) > 2 and len(scores) < CONTINUOUS:
        raise DirectionError(f"{found}; at least {CONTINUOUS} expected, label more")
    x, y = w.cpu().double() / scale, scores.double()
    if len(values) == 2:
        y = (y == values.max()).double()
    fit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _logistic if len(values) == 2 else _ridge
    vector, _ = fit(x, y)
    unseen = _unseen(fit, x, y)
    if len(values) == 2:
        told = ((unseen > 0) == (y > 0.5)).double()
        share = float(told[y > 0.5].mean() + told[y < 0.5].mean()) / 2  # of either: what always says no tells half
        measure = f"tells {share:.0%} of images that it has not seen, either score counting half"
    else:
        measure = f"correlation {float(torch.corrcoef(torch.stack([unseen, y]))[0, 1]):.2f} on images not seen"
    return Learned(vector.float(), f"{what}: learned from {len(y)} images; {measure}")


def _logistic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of the L2-penalised logistic regression of y `[N]` in {0, 1} on x `[N, D]`."""
    weights = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weights + bias, y, reduction="sum")
        value = value + PENALTY / 2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach(), bias.detach()


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of the ridge regression of y `[N]` on x `[N, D]`; solved among images, of which there are few.

    (For more images than dimensions, among dimensions.)
    """
    mean, level = x.mean(dim=0), y.mean()
    centred, rest = x - mean, y - level
    if len(x) <= x.shape[1]:
        gram = centred @ centred.T + PENALTY * torch.eye(len(x), dtype=x.dtype)
        weights = centred.T @ torch.linalg.solve(gram, rest)
    else:
        gram = centred.T @ centred + PENALTY * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(gram, centred.T @ rest)
    return weights, level - mean @ weights


def _unseen(fit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, y: Tensor) -> Tensor:
    """What a fit to the other folds says of each image, `[N]`; every fold has its share of low and high scores."""
    folds = torch.empty(len(y), dtype=torch.long)
    folds[y.argsort(stable=True)] = torch.arange(len(y)) % FOLDS
    said = torch.empty_like(y)
    for fold in range(FOLDS):
        held = folds == fold
        if held.any():
            weights, bias = fit(x[~held], y[~held])
            said[held] = x[held] @ weights + bias
    return said
