"""One picture an image of the alpha study: the path to w_z, and what tuning with each alpha does at both ends."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pti_core import images
from pti_core.alpha.findings import label
from pti_core.alpha.study import OFF, Alpha
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.locality import interpolate
from pti_core.pivot import Pivots
from pti_core.sampling import ImageRandom, sample_w, seed_for

CELL: Final = 128  # pixels
GAIN: Final = 4.0  # differences are shown so many times as strong
_GAP, _LEFT, _HEAD, _CAPTION = 4, 150, 12, 18
_INK, _GREY = (24, 24, 27), (113, 113, 122)

Cells = list[tuple[Tensor, str]]  # [1, 3, H, W] in [-1, 1], and a caption


@torch.no_grad()
def ends(
    engine: Engine,
    target: Tensor,
    pivots: Pivots,
    image_id: str,
    alphas: Sequence[Alpha],
    tuned: Mapping[Alpha, Generator],
) -> bytes:
    """The picture as PNG. `tuned`: the generators by their alpha; w_z is the first sample that is measured at."""
    old, ws = engine.generator, pivots.ws
    w_z = sample_w(old, ImageRandom([seed_for(image_id, "locality/0", engine.config.seed)], ws.device))
    ws_z = w_z[:, None].expand_as(ws)
    there = old.synthesis(ws_z)
    points = [(1.0, there, "w_z")]
    for alpha in alphas:
        if alpha != OFF and float(alpha) > 0:
            point = interpolate(ws, w_z, float(alpha))
            points.append((point.t.item(), old.synthesis(point.ws), f"alpha {label(float(alpha))}"))
    path: Cells = [(target[None], "target"), (old.synthesis(ws), "pivot, own noise")]
    path += [(drawn, f"{name}, t {t:.2f}") for t, drawn, name in sorted(points, key=lambda point: point[0])]
    pivot_row: Cells = [(old.synthesis(ws, noise=pivots.noise), "not tuned")]
    z_row: Cells = [(there, "not tuned")]
    changes: Cells = [(torch.zeros_like(there) - 1, "")]
    for alpha, new in tuned.items():
        name = "no regulariser" if alpha == OFF else f"alpha {label(float(alpha))}"
        at_z = new.synthesis(ws_z)
        pivot_row.append((new.synthesis(ws, noise=pivots.noise), name))
        z_row.append((at_z, name))
        changes.append((GAIN * (at_z.clamp(-1, 1) - there.clamp(-1, 1)).abs() - 1, name))
    rows = {
        "old generator,\nalong the line\nfrom pivot to w_z": path,
        "tuned with alpha,\nat the pivot": pivot_row,
        "tuned with alpha,\nat w_z": z_row,
        f"its change at w_z,\n{GAIN:g} times": changes,
    }
    buffer = io.BytesIO()
    _sheet(rows).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _sheet(rows: Mapping[str, Cells]) -> Image.Image:
    width = _LEFT + max(len(cells) for cells in rows.values()) * (CELL + _GAP) + _HEAD
    height = 2 * _HEAD + len(rows) * (CELL + _CAPTION)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(11)
    for i, (heading, cells) in enumerate(rows.items()):
        top = _HEAD + i * (CELL + _CAPTION)
        draw.multiline_text((_HEAD, top + CELL / 2), heading, _INK, font, anchor="lm")
        for j, (image, caption) in enumerate(cells):
            picture = images.picture(images.to_uint8(image.cpu().numpy())[0]).resize((CELL, CELL))
            left = _LEFT + j * (CELL + _GAP)
            sheet.paste(picture, (left, top))
            draw.text((left + CELL / 2, top + CELL + 3), caption, _GREY, small, anchor="ma")
    return sheet
