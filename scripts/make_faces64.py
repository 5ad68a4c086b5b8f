"""Make the evaluation set `benchmarks/faces64.zip`: 64 faces of 128 x 128, half with what a generator does not draw.

    python scripts/make_faces64.py --wheel random_face-2021.7.21.1-py3-none-any.whl

Samples of the full MobileStyleGAN at 1024, as the demo's faces are, with seeds from 60,000 up (the pocket generator was
fitted to seeds below 10,000) and a truncation psi of 0.6 to 0.9. Half of them are painted on: in which colours, where
and how large follows from the seed.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import make_demo_faces as demo
import numpy as np
from make_demo_faces import SIZE, Canvas, Colour, Sampler
from numpy.typing import NDArray
from PIL import Image

from flows.errors import one_sentence

FACES, FIRST_SEED, OUT_SIZE = 64, 60_000, 128
PSI = (0.6, 0.9)
OUT = Path(__file__).parents[1] / "benchmarks/faces64.zip"
SKIPPED = frozenset({60002, 60003, 60009, 60029, 60033, 60055})
"""Seeds whose pictures the full generator draws badly (half of a second head, an object that is none)."""

TURNED = frozenset({60005, 60014, 60018, 60019, 60030, 60037, 60038, 60040, 60044, 60057, 60058, 60063})
"""Seeds of faces that look to the side, where paint made for the front would hang in the air; they stay clean."""

NOTE = """Origin and licence of faces64

Made by scripts/make_faces64.py. The pictures show nobody: they are samples of MobileStyleGAN (PyPI package
random-face 2021.7.21.1, Apache-2.0), half of them painted on by the script. The weights of that network were distilled
from NVIDIA's StyleGAN2 trained on FFHQ, whose model licence is for non-commercial use (CC BY-NC-SA 4.0); take these
pictures to be under that licence too. None of them was used in fitting the pocket generator.
"""


class VariedCanvas(Canvas):
    """A canvas on which everything is moved, scaled, mirrored and recoloured as a seed says."""

    def __init__(self, face: Image.Image, random: np.random.Generator) -> None:
        super().__init__(face)
        self.hue = random.uniform(0, 1)
        # Never smaller and never lower: what the upper edge of the picture cuts off would show its cut.
        scale, mirror = random.uniform(1, 1.15), random.choice([-1, 1])
        x, y = random.uniform(-0.025, 0.025) * SIZE, random.uniform(-0.025, 0) * SIZE
        # of a place in the result to its place in what was drawn, about the middle of the face
        middle = SIZE / 2
        a = mirror / scale
        self.inverse = (a, 0.0, middle - a * (middle + x), 0.0, 1 / scale, middle - (middle + y) / scale)

    def blend(self, mask: Image.Image, colour: Colour, opacity: float, worn: float, blur: float) -> None:
        """Lay a colour, turned to another hue, where the moved mask is white."""
        super().blend(self._moved(mask), self._turned(colour), opacity, worn, blur)

    def picture(self, picture: NDArray[np.float32], alpha: NDArray[np.float32]) -> None:
        """Lay a picture, moved and with its channels in the order that the hue gives."""
        order = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1]][int(self.hue * 4)]
        moved = [self._moved(Image.fromarray(picture[..., channel])) for channel in order]
        opacity = self._moved(Image.fromarray(alpha[..., 0]))
        super().picture(np.stack([np.asarray(m) for m in moved], axis=-1), np.asarray(opacity)[..., None])

    def _moved(self, mask: Image.Image) -> Image.Image:
        return mask.transform((SIZE, SIZE), Image.Transform.AFFINE, self.inverse, Image.Resampling.BILINEAR)

    def _turned(self, colour: Colour) -> Colour:
        hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in colour))
        if saturation < 0.35:  # black and white stay
            return colour
        red, green, blue = colorsys.hls_to_rgb((hue + self.hue) % 1, lightness, saturation)
        return round(red * 255), round(green * 255), round(blue * 255)


def face_mask(c: Canvas) -> None:
    """A pleated mask over mouth and nose, with bands to the ears."""
    for side in (-1, 1):
        for start, end in ((0.575, 0.54), (0.78, 0.74)):
            c.line([(0.5 + side * 0.19, start), (0.5 + side * 0.26, end)], 0.01, demo.WHITE, opacity=1, worn=0.5)
    outline = [(0.29, 0.57), (0.5, 0.535), (0.71, 0.57), (0.68, 0.79), (0.5, 0.86), (0.32, 0.79)]
    c.polygon(outline, (90, 160, 214), opacity=1, worn=0.45, blur=3)
    for y in (0.62, 0.68, 0.74):
        c.line([(0.31, y + 0.012), (0.5, y), (0.69, y + 0.012)], 0.007, (52, 110, 170), opacity=0.8, worn=0.4)


def dots(c: Canvas) -> None:
    """Large dots of two colours all over the face."""
    for row in range(5):
        for column in range(4 + row % 2):
            x, y = 0.5 + (column - (3 + row % 2) / 2) * 0.125, 0.32 + row * 0.125
            c.ellipse(x, y, 0.036, 0.036, demo.ORANGE if row % 2 else demo.BLUE, opacity=0.9, blur=4)


def flag(c: Canvas) -> None:
    """Three broad bands across the face, as at a match."""
    for i, colour in enumerate((demo.RED, demo.WHITE, demo.BLUE)):
        x = 0.32 + 0.12 * i
        c.polygon([(x, 0.28), (x + 0.12, 0.28), (x + 0.12, 0.84), (x, 0.84)], colour, opacity=0.75, blur=10)


def sunglasses(c: Canvas) -> None:
    """Square dark glasses in a coloured frame, with a light in each."""
    for x in (0.37, 0.63):
        corners = [(x - 0.105, 0.415), (x + 0.105, 0.415), (x + 0.085, 0.545), (x - 0.085, 0.545)]
        c.polygon([(x + (px - x) * 1.17, 0.478 + (py - 0.478) * 1.25) for px, py in corners], demo.RED, opacity=1)
        c.polygon(corners, (14, 16, 24), opacity=0.96, worn=0.2)
        c.stripe((x - 0.06, 0.5), (x - 0.01, 0.43), 0.014, demo.WHITE, opacity=0.6, worn=0, blur=2)
    c.line([(0.47, 0.435), (0.53, 0.435)], 0.022, demo.RED, opacity=1)


PAINTS: list[Callable[[Canvas], None]] = [
    demo.tiger,
    face_mask,
    demo.glasses,
    demo.clown,
    demo.knitted_cap,
    dots,
    demo.lightning,
    demo.runner,
    sunglasses,
    demo.party_hat,
    flag,
]


def random_of(seed: int) -> np.random.Generator:
    """The random numbers of a face: first its psi, then its paint."""
    return np.random.default_rng(seed)


def plan(faces: int) -> list[tuple[int, Callable[[Canvas], None] | None]]:
    """Seed and paint of each face: three of five that look ahead, each kind as often as any other."""
    found: list[tuple[int, Callable[[Canvas], None] | None]] = []
    ahead = painted = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 2 * faces):
        if seed in SKIPPED or len(found) == faces:
            continue
        paint = None
        if seed not in TURNED:
            ahead += 1
            if ahead % 5 in (0, 2, 4):
                paint = PAINTS[painted % len(PAINTS)]
                painted += 1
        found.append((seed, paint))
    return found


def worn(face: Image.Image, seed: int, paint: Callable[[Canvas], None]) -> Image.Image:
    """The face with what it wears."""
    random = random_of(seed)
    random.uniform(*PSI)
    canvas = VariedCanvas(face, random)
    paint(canvas)
    return canvas.image()


def main() -> None:
    """Draw, paint, reduce by area, pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--faces", type=int, default=FACES)
    args = parser.parse_args()
    sampler = Sampler(args.wheel)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.out, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, (2021, 7, 21, 0, 0, 0)), content)  # the same bytes every time

        add("LICENCE.txt", NOTE.encode())
        for seed, paint in plan(args.faces):
            face = sampler.face(seed, random_of(seed).uniform(*PSI))
            what = "clean"
            if paint is not None:
                what, face = paint.__name__.replace("_", "-"), worn(face, seed, paint)
            buffer = io.BytesIO()
            face.resize((OUT_SIZE, OUT_SIZE), Image.Resampling.BOX).save(buffer, "PNG", optimize=True)
            add(f"{seed}-{what}.png", buffer.getvalue())


if __name__ == "__main__":
    with one_sentence():
        main()
