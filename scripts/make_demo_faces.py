"""Make the packaged data set `demo`: twelve faces of 128 x 128, eight of which a face generator does not draw.

    python scripts/make_demo_faces.py --wheel random_face-2021.7.21.1-py3-none-any.whl

Eleven faces are samples of the full MobileStyleGAN at 1024 (seeds from 50,000 up: the pocket generator was fitted to
seeds below 10,000), seven of them painted on by this script; one is the astronaut of scikit-image. Paint takes the
light of the face below it, so that it looks worn and not stuck on. Positions are fractions of the image's side; FFHQ
alignment puts the eyes at about (0.37, 0.47) and (0.63, 0.47), the mouth at (0.5, 0.73).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from flows.errors import one_sentence
from pti_core.alignment import aligned
from pti_core.generators.checkpoints.random_face import read_random_face
from pti_core.machine.malloc import keep_freed_memory

SIZE, OUT_SIZE = 1024, 128
PSI = 0.75
Point = tuple[float, float]
Colour = tuple[int, int, int]
OUT = Path(__file__).parents[1] / "pti_core/assets/demo_faces"


class Canvas:
    """A face of 1024 x 1024 to paint on."""

    def __init__(self, face: Image.Image) -> None:
        self.pixels = np.asarray(face, dtype=np.float32) / 255
        light = self.pixels.mean(axis=2)
        smooth = np.asarray(Image.fromarray((light * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(12))) / 255
        self.light = (np.clip(0.65 * smooth + 0.35 * light, 0.08, 1) / np.median(smooth[300:800, 300:724]))[..., None]

    def blend(self, mask: Image.Image, colour: Colour, opacity: float, worn: float, blur: float) -> None:
        """Lay a colour where the mask is white; `worn` is how much of the light below it takes on (0 to 1)."""
        alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)[..., None] / 255 * opacity
        paint = np.array(colour, dtype=np.float32) / 255 * (1 - worn + worn * np.clip(self.light, 0.35, 1.35))
        self.picture(paint, alpha)

    def picture(self, picture: NDArray[np.float32], alpha: NDArray[np.float32]) -> None:
        """Lay a picture `[SIZE, SIZE, 3]` in [0, 1] over the face, with opacities `[SIZE, SIZE, 1]`."""
        self.pixels = self.pixels * (1 - alpha) + picture * alpha

    def draw(
        self,
        shape: Callable[[ImageDraw.ImageDraw], None],
        colour: Colour,
        opacity: float = 0.9,
        worn: float = 0.8,
        blur: float = 3,
    ) -> None:
        """Draw a shape with Pillow and blend it in."""
        mask = Image.new("L", (SIZE, SIZE), 0)
        shape(ImageDraw.Draw(mask))
        self.blend(mask, colour, opacity, worn, blur)

    def polygon(self, points: Sequence[Point], colour: Colour, **style: float) -> None:
        """A filled polygon."""
        self.draw(lambda d: d.polygon([(x * SIZE, y * SIZE) for x, y in points], fill=255), colour, **style)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, width: float = 0, **style: float
    ) -> None:
        """A filled ellipse, or a ring of this width."""
        box = [(x - rx) * SIZE, (y - ry) * SIZE, (x + rx) * SIZE, (y + ry) * SIZE]
        ring = {"outline": 255, "width": round(width * SIZE)} if width else {"fill": 255}
        self.draw(lambda d: d.ellipse(box, **ring), colour, **style)  # type: ignore[arg-type]

    def line(self, points: Sequence[Point], width: float, colour: Colour, **style: float) -> None:
        """A line of constant width."""
        scaled = [(x * SIZE, y * SIZE) for x, y in points]
        self.draw(lambda d: d.line(scaled, fill=255, width=round(width * SIZE), joint="curve"), colour, **style)

    def stripe(self, start: Point, end: Point, width: float, colour: Colour, bend: float = 0.0, **style: float) -> None:
        """A stripe that is widest in its middle, as a brush leaves it."""
        (x0, y0), (x1, y1) = start, end
        along = np.linspace(0, 1, 24)
        nx, ny = -(y1 - y0), x1 - x0
        norm = math.hypot(nx, ny)
        centre = [(x0 + t * (x1 - x0), y0 + t * (y1 - y0), bend * math.sin(math.pi * t)) for t in along]
        half = [width / 2 * math.sin(math.pi * min(0.98, max(0.02, t))) ** 0.6 for t in along]
        sides: list[list[Point]] = [[], []]
        for (x, y, b), h in zip(centre, half, strict=True):
            for side, sign in zip(sides, (1, -1), strict=True):
                side.append((x + nx / norm * (b + sign * h), y + ny / norm * (b + sign * h)))
        self.polygon(sides[0] + sides[1][::-1], colour, **style)

    def image(self) -> Image.Image:
        """The painted face."""
        return Image.fromarray((np.clip(self.pixels, 0, 1) * 255).round().astype(np.uint8))


BLACK, WHITE, RED, ORANGE, BLUE = (18, 16, 16), (250, 248, 244), (205, 24, 34), (242, 138, 28), (24, 70, 190)


def tiger(c: Canvas) -> None:
    """Orange face, white muzzle and brows, black stripes and nose."""
    c.ellipse(0.5, 0.55, 0.29, 0.4, ORANGE, opacity=0.72, blur=26)
    for x in (0.37, 0.63):
        c.ellipse(x, 0.395, 0.085, 0.042, WHITE, opacity=0.85, blur=9)
    c.ellipse(0.41, 0.68, 0.11, 0.075, WHITE, opacity=0.85, blur=12)
    c.ellipse(0.59, 0.68, 0.11, 0.075, WHITE, opacity=0.85, blur=12)
    c.polygon([(0.44, 0.575), (0.56, 0.575), (0.5, 0.64)], BLACK, opacity=0.92, blur=5)
    c.line([(0.5, 0.63), (0.5, 0.695)], 0.012, BLACK)
    for side in (-1, 1):
        for y, length, width in ((0.3, 0.1, 0.034), (0.245, 0.07, 0.028)):
            c.stripe(
                (0.5 + side * 0.05, y + 0.03), (0.5 + side * (0.05 + length), y - 0.035), width, BLACK, side * 0.01
            )
        for y, length in ((0.53, 0.115), (0.6, 0.13), (0.69, 0.12), (0.77, 0.1)):
            c.stripe((0.5 + side * 0.3, y - 0.04), (0.5 + side * (0.3 - length), y), 0.034, BLACK, -side * 0.012)
    c.stripe((0.5, 0.2), (0.5, 0.345), 0.04, BLACK)


def glasses(c: Canvas) -> None:
    """Large round red glasses."""
    for x in (0.365, 0.635):
        c.ellipse(x, 0.475, 0.115, 0.115, (255, 236, 150), opacity=0.28, worn=1.0, blur=2)
        c.ellipse(x, 0.475, 0.127, 0.127, (214, 16, 40), width=0.026, opacity=1, worn=0.25, blur=1.5)
        c.stripe((x - 0.07, 0.42), (x - 0.02, 0.39), 0.016, WHITE, opacity=0.75, worn=0, blur=2)
    c.line([(0.488, 0.455), (0.5, 0.447), (0.512, 0.455)], 0.024, (214, 16, 40), opacity=1, worn=0.25, blur=1.5)
    for side in (-1, 1):
        ends = [(0.5 + side * 0.255, 0.457), (0.5 + side * 0.292, 0.452)]
        c.line(ends, 0.024, (180, 12, 34), opacity=1, worn=0.3, blur=1.5)


def party_hat(c: Canvas) -> None:
    """A cone of blue paper with yellow dots and a white rim."""
    c.ellipse(0.5, 0.215, 0.24, 0.04, BLACK, opacity=0.35, blur=14)
    c.polygon([(0.26, 0.2), (0.74, 0.2), (0.5, -0.42)], (40, 110, 226), opacity=1, worn=0.15, blur=2)
    c.polygon([(0.26, 0.2), (0.4, 0.2), (0.5, -0.42)], (20, 70, 176), opacity=0.6, worn=0.1, blur=18)
    for x, y in ((0.36, 0.12), (0.5, 0.14), (0.63, 0.12), (0.43, 0.03), (0.56, 0.035)):
        c.ellipse(x, y, 0.033, 0.033, (255, 212, 40), opacity=1, worn=0.1, blur=2)
    for i in range(13):
        c.ellipse(0.26 + i * 0.04, 0.2 + 0.012 * math.sin(i), 0.032, 0.026, WHITE, opacity=1, worn=0.15, blur=4)


def lightning(c: Canvas) -> None:
    """A red and blue bolt over one eye."""
    bolt = [(0.7, 0.16), (0.55, 0.44), (0.64, 0.455), (0.55, 0.74), (0.8, 0.405), (0.7, 0.385), (0.82, 0.2)]
    edge = [(x + 0.018 * (1 if x > 0.63 else -1), y + 0.008) for x, y in bolt]
    c.polygon(edge, (34, 84, 208), opacity=0.9, blur=4)
    c.polygon(bolt, (226, 30, 44), opacity=0.92, blur=3)
    c.ellipse(0.63, 0.468, 0.036, 0.015, BLACK, opacity=0.75, blur=4)


def clown(c: Canvas) -> None:
    """A red ball for a nose, a white mouth with red lips, blue diamonds over the eyes."""
    c.ellipse(0.5, 0.73, 0.2, 0.1, WHITE, opacity=0.92, blur=7)
    c.ellipse(0.5, 0.735, 0.15, 0.05, RED, width=0.026, opacity=0.95, blur=4)
    for x in (0.375, 0.625):
        c.polygon([(x, 0.31), (x + 0.035, 0.445), (x - 0.035, 0.445)], BLUE, opacity=0.9, blur=4)
        c.polygon([(x, 0.62), (x + 0.03, 0.5), (x - 0.03, 0.5)], BLUE, opacity=0.9, blur=4)
    c.ellipse(0.5, 0.595, 0.078, 0.078, (150, 8, 18), opacity=1, worn=0.1, blur=3)
    c.ellipse(0.497, 0.59, 0.068, 0.068, (232, 28, 40), opacity=1, worn=0.1, blur=8)
    c.ellipse(0.475, 0.562, 0.018, 0.014, WHITE, opacity=0.85, worn=0, blur=5)


def knitted_cap(c: Canvas) -> None:
    """A cap in wide stripes, with a rib and stitches."""
    dome = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(dome).ellipse([0.185 * SIZE, -0.12 * SIZE, 0.9 * SIZE, 0.72 * SIZE], fill=255)
    ImageDraw.Draw(dome).rectangle([0, 0.335 * SIZE, SIZE, SIZE], fill=0)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    inside = np.asarray(dome.filter(ImageFilter.GaussianBlur(3)), dtype=np.float32) / 255
    row = y - 0.1 * (x - 0.54) ** 2
    band = np.floor(row / 0.062).astype(int) % 4
    colours = np.array([(196, 32, 48), (246, 238, 220), (24, 110, 104), (246, 190, 60)], dtype=np.float32) / 255
    stitch = 0.9 + 0.1 * np.cos(2 * np.pi * x / 0.022) * np.cos(2 * np.pi * row / 0.02 + np.pi * np.floor(x / 0.011))
    rib = np.where(y > 0.26, 0.82 + 0.18 * np.cos(2 * np.pi * x / 0.03), 1.0)
    colour = np.where((y > 0.26)[..., None], colours[0], colours[band])
    round_light = 1.08 - 1.6 * (x - 0.5) ** 2
    knit = colour * (stitch * rib * round_light)[..., None]
    c.ellipse(0.54, 0.345, 0.31, 0.025, BLACK, opacity=0.4, blur=10)
    c.picture(knit.astype(np.float32), inside[..., None])


def runner(c: Canvas) -> None:
    """A white headband with a number, and three stripes on each cheek."""
    band = [(0.2, 0.235), (0.35, 0.262), (0.5, 0.27), (0.65, 0.262), (0.815, 0.235)]
    lower = [(x, y + 0.095) for x, y in reversed(band)]
    c.polygon(band + lower, WHITE, opacity=1, worn=0.25, blur=2)
    for offset in (0.014, 0.08):
        c.line([(x, y + offset) for x, y in band], 0.01, (20, 60, 180), opacity=1, worn=0.2, blur=1.5)
    font = ImageFont.load_default(66)
    c.draw(
        lambda d: d.text((0.5 * SIZE, 0.32 * SIZE), "RUN 26", 255, font, anchor="mm", stroke_width=2),
        (200, 20, 40),
        blur=1,
    )
    for side in (-1, 1):
        for i, colour in enumerate(((0, 146, 70), WHITE, (206, 43, 55))):
            x = 0.5 + side * (0.13 + 0.036 * i)
            c.stripe((x, 0.54), (x + side * 0.006, 0.68), 0.038, colour, opacity=0.9, blur=3)


FACES: list[tuple[str, int | None, Callable[[Canvas], None] | None]] = [
    ("01-clean-curls", 50010, None),
    ("02-tiger-paint", 50000, tiger),
    ("03-round-glasses", 50017, glasses),
    ("04-clean-bald", 50012, None),
    ("05-astronaut", None, None),
    ("06-party-hat", 50018, party_hat),
    ("07-lightning-paint", 50019, lightning),
    ("08-clean-baby", 50015, None),
    ("09-clown-paint", 50027, clown),
    ("10-knitted-cap", 50020, knitted_cap),
    ("11-clean-glasses", 50030, None),
    ("12-headband", 50026, runner),
]
PHOTOGRAPH = (130, 10, 330, 210)
"""The crop of the demo: by hand, so that the face is a sixth smaller than FFHQ's are."""

ALIGNED = "astronaut-aligned"
EYES, MOUTH = ((204.0, 100.9), (246.7, 103.0)), ((204.7, 140.7), (243.5, 141.5))
"""In the photograph: the middles of both eyes, the corners of the mouth; x, y in pixels."""


def astronaut() -> Image.Image:
    """The photograph of scikit-image (Eileen Collins, NASA)."""
    from skimage import data

    return Image.fromarray(data.astronaut())


class Sampler:
    """The full MobileStyleGAN, from the wheel of `random-face`."""

    def __init__(self, wheel: str) -> None:
        keep_freed_memory()
        self.generator = read_random_face(wheel)
        z = torch.from_numpy(np.random.RandomState(1).randn(10_000, 512).astype("float32"))
        with torch.no_grad():
            self.w_avg = self.generator.mapping(z)[:, 0].mean(dim=0)

    @torch.no_grad()
    def face(self, seed: int, psi: float = PSI) -> Image.Image:
        """The face of a seed, 1024 x 1024, truncated to `psi`."""
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, 512).astype("float32"))
        w = self.w_avg.lerp(self.generator.mapping(z)[:, 0], psi)
        image = self.generator.synthesis(w[:, None].expand(-1, self.generator.num_ws, -1))[0]
        return Image.fromarray(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def main() -> None:
    """Draw, paint, reduce by area, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--size", type=int, default=OUT_SIZE, help="128 as packaged, or 1024 for the full generator")
    parser.add_argument("--only", nargs="*", help=f"these faces, e.g. 03-round-glasses, or {ALIGNED}")
    args = parser.parse_args()
    sampler = Sampler(args.wheel)
    args.out.mkdir(parents=True, exist_ok=True)
    if ALIGNED in (args.only or ()):
        aligned(astronaut(), np.array([*EYES, *MOUTH]), args.size).save(args.out / f"{ALIGNED}.png", optimize=True)
    for name, seed, paint in FACES:
        if args.only and name not in args.only:
            continue
        face = astronaut().crop(PHOTOGRAPH) if seed is None else sampler.face(seed)
        if paint is not None:
            canvas = Canvas(face)
            paint(canvas)
            face = canvas.image()
        reduced = face.resize((args.size, args.size), Image.Resampling.BOX if seed else Image.Resampling.LANCZOS)
        reduced.save(args.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    with one_sentence():
        main()
