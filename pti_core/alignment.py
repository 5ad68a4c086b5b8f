"""Faces as generators of FFHQ know them: cut out of photographs by landmarks, level, in one size and place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pti_core.addresses import redact
from pti_core.config import ImageConfig
from pti_core.connections import OutOfResources
from pti_core.datasets import scan
from pti_core.generators.checkpoints.whole import whole
from pti_core.given import read_given
from pti_core.images import ImageError, decode
from pti_core.names import apart, file_in_the_way, own_path, plain_path, refused, there
from pti_core.reading import read_bytes
from pti_core.sources.folders import listed_with

POINTS: Final = ("left_eye", "right_eye", "mouth_left", "mouth_right")  # left and right as one sees them
COLUMNS: Final = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")
CLOSEST: Final = 4.0  # pixels between the eyes; there is no face in less
LARGEST: Final = 200e6  # pixels of a photograph and what is mirrored around it
WIDEST: Final = 3.0  # times the longer side of a photograph that a face's square may take; all beyond it is mirrored

Landmarks = NDArray[np.float64]
"""`[4, 2]`: x and y, in pixels from the top left corner, of both eyes and of both corners of the mouth (`POINTS`)."""


class AlignmentError(ValueError):
    """Landmarks that cannot be used; the message says which and why."""


@dataclass
class Aligned:
    """What `align` did."""

    written: int = 0
    kept: int = 0  # were there already
    without: list[str] = field(default_factory=list)  # images that have no landmarks
    unknown: list[str] = field(default_factory=list)  # what landmarks name that is no image of the data set
    wrong: list[str] = field(default_factory=list)  # a sentence an image that could not be aligned


def aligned(photograph: Image.Image, landmarks: Landmarks, size: int) -> Image.Image:
    """The face as FFHQ aligns it (Karras et al. 2019, appendix A): a square, turned so that the eyes are level.

    Its middle lies a tenth of the way from the eyes to the mouth. Its side is four times the distance between the
    eyes, or 3.6 times that from eyes to mouth, whichever is more. What lies beyond the photograph is mirrored.
    Left and right may be swapped. Raises AlignmentError for points that are no face.
    """
    if not np.isfinite(landmarks).all():
        raise AlignmentError("a landmark is missing")
    longest = max(photograph.size)
    if (abs(landmarks - np.array(photograph.size) / 2) > 1.5 * longest).any():
        raise AlignmentError("a landmark lies far outside of the photograph")
    eyes, between, down = landmarks[:2], landmarks[:2].mean(axis=0), landmarks[2:].mean(axis=0) - landmarks[:2].mean(0)
    across = eyes[1] - eyes[0]
    if across @ (down[1], -down[0]) < 0:  # some call left what is the person's left
        across = -across
    if min(np.hypot(*across), np.hypot(*down)) < CLOSEST:
        raise AlignmentError(f"less than {CLOSEST:g} pixels between the eyes, or from eyes to mouth")
    right = across + np.array((down[1], -down[0]))  # both say which way is right; their mean is steadier
    right *= max(2 * np.hypot(*across), 1.8 * np.hypot(*down)) / np.hypot(*right)
    if (side := 2 * np.hypot(*right)) > WIDEST * longest:
        raise AlignmentError(
            f"the face's square would be {side:.0f} pixels wide, the photograph's longer side {longest}"
        )
    below = np.array((-right[1], right[0]))
    middle = between + 0.1 * down
    corners = np.stack([middle - right - below, middle - right + below, middle + right + below, middle + right - below])
    photograph, corners = _enough(photograph, corners)
    reduced = side / size  # source pixels a pixel; Pillow's QUAD takes four of them, whatever the scale
    if reduced >= 2:
        factor = int(reduced)
        photograph, corners = photograph.reduce(factor), (corners + 0.5) / factor - 0.5
    return photograph.transform(
        (size, size), Image.Transform.QUAD, (corners + 0.5).ravel().tolist(), Image.Resampling.BICUBIC
    )


def _enough(photograph: Image.Image, corners: Landmarks) -> tuple[Image.Image, Landmarks]:
    """The part of a photograph that a square needs, mirrored where it ends; and the corners there."""
    low = np.floor(corners.min(axis=0)).astype(int) - 2
    high = np.ceil(corners.max(axis=0)).astype(int) + 3
    first, last = np.maximum(low, 0), np.minimum(high, photograph.size)
    if (last - first < 2).any():
        raise AlignmentError("the face lies outside of the photograph")
    if (needed := float(np.prod((high - low).astype(float)))) > LARGEST:
        raise AlignmentError(f"its square takes {needed / 1e6:.0f} megapixels, at most {LARGEST / 1e6:.0f} expected")
    pixels = np.asarray(photograph.crop((*first, *last)))
    around = ((first[1] - low[1], high[1] - last[1]), (first[0] - low[0], high[0] - last[0]), (0, 0))
    return Image.fromarray(np.pad(pixels, around, mode="reflect")), corners - low


def align(
    dataset: str,
    landmarks: str,
    output: str | Path,
    size: int = 1024,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Aligned:
    """Write the faces of a data set as PNG of `size` x `size`, `anna/1.jpg` as `output/anna/1.png`.

    Those of an image with several are `1-1.png`, `1-2.png`, ...; images that would share a file keep their extension.
    `landmarks` is a CSV or Parquet file with `image_id` and `COLUMNS`, a row a face. What cannot be read or aligned is
    left out and told. Files that are there are kept. Raises AlignmentError for a table that is none and an output that
    is no folder of this machine, or one in the data set; DatasetError; OutOfResources.
    """
    if "://" in str(output):
        raise AlignmentError(f"{redact(str(output))}: a folder on this machine expected")
    output = Path(output)
    if blocked := file_in_the_way(output, "choose another folder"):
        raise AlignmentError(blocked)
    if listed_with(dataset, output):
        raise AlignmentError(
            f"{str(output)!r} lies in the data set {dataset!r}, which would have the faces among its photographs from "
            "then on; choose a folder outside of it"
        )
    table = read_given(landmarks, "landmarks", COLUMNS, AlignmentError)
    listing = scan(dataset, without=str(output))
    ids, uris = listing["image_id"].to_pylist(), listing["uri"].to_pylist()
    faces: Mapping[str, pd.DataFrame] = {str(name): rows for name, rows in table.groupby(level=0, sort=False)}
    if not faces:
        raise AlignmentError(f"landmarks {redact(landmarks)!r}: no rows; a row a face expected")
    if not faces.keys() & set(ids):
        named = f"{next(iter(faces))!r}, the data set {ids[0]!r}"
        raise AlignmentError(
            f"landmarks {redact(landmarks)!r}: none of them is of an image of the data set (they name {named})"
        )
    done = Aligned(unknown=sorted(faces.keys() - set(ids)))
    paths = _paths(ids, {name: len(rows) for name, rows in faces.items()})
    for i, (image_id, uri) in enumerate(zip(ids, uris, strict=True)):
        if image_id not in faces:
            done.without.append(image_id)
        else:
            files = [output / path for path in paths[image_id]]
            _align_one(image_id, uri, faces[image_id], files, size, overwrite, done)
        if on_progress is not None:
            on_progress(i + 1, len(ids))
    return done


def _paths(ids: Sequence[str], faces: Mapping[str, int]) -> dict[str, list[str]]:
    """Where the faces of each image go, `faces` of them: `1.png`, or `1-1.png`, `1-2.png`; no two to one file.

    Images that would share a file keep their extension, as those do that differ by it alone; and where even these are
    the same, since a name has been cleaned, they get a part of its checksum.
    """
    stems = Counter(_name(image_id, 0) for image_id in ids)

    def files(image_id: str, which: int) -> list[str]:
        numbers = [f"-{n + 1}" for n in range(faces[image_id])] if faces[image_id] > 1 else [""]
        return [f"{_name(image_id, which)}{number}.png" for number in numbers]

    first = {image_id: int(stems[_name(image_id, 0)] > 1) for image_id in ids if image_id in faces}
    return {image_id: files(image_id, which) for image_id, which in apart(files, first).items()}


def _name(image_id: str, which: int) -> str:
    """Without extension, with it, and such that no other image has it."""
    if which > 1:
        return own_path(image_id, which - 1)
    path = plain_path(image_id)
    return path if which else str(PurePosixPath(path).with_suffix(""))


def _align_one(
    image_id: str, uri: str, faces: pd.DataFrame, paths: Sequence[Path], size: int, overwrite: bool, done: Aligned
) -> None:
    """The faces of an image, each as a file."""
    points = faces[list(COLUMNS)].to_numpy(np.float64).reshape(-1, len(POINTS), 2)
    photograph: Image.Image | None = None
    for path, landmarks in zip(paths, points, strict=True):
        if there(path) and not overwrite:
            done.kept += 1
            continue
        try:
            photograph = photograph or Image.fromarray(decode(read_bytes(uri), image_id, ImageConfig(convert=True)))
            face = aligned(photograph, landmarks, size)
        except OutOfResources:
            raise
        except (ImageError, OSError) as error:
            done.wrong.append(str(error))
            return
        except AlignmentError as error:
            done.wrong.append(f"image {image_id!r}: {error}")
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as part:
                face.save(part, "PNG")
        except OSError as error:
            if not (sentence := refused(image_id, error)):
                raise
            done.wrong.append(sentence)
            return
        done.written += 1
