"""Faces cut out of photographs by landmarks, as FFHQ aligns them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from flows.cli import app
from pti_core.alignment import COLUMNS, AlignmentError, align, aligned

COLOURS = ("red", "lime", "blue", "blue")


def photograph(
    size: int = 1600, middle: tuple[int, int] = (840, 720), scale: float = 1.0
) -> tuple[Image.Image, np.ndarray]:
    """Eyes 240 apart and 200 above the mouth, turned by 20 degrees: red and green left and right, a blue mouth."""
    turn = np.deg2rad(20)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = scale * np.array([(-120, 0), (120, 0), (-80, 200), (80, 200)]) @ axes + middle
    image, radius = Image.new("RGB", (size, size)), 16 * scale
    for (x, y), colour in zip(points, COLOURS, strict=True):
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image, points


def places(face: Image.Image) -> list[np.ndarray]:
    """Where the left eye, the right eye and the mouth are, x and y in shares of the side."""
    pixels = np.asarray(face) > 128
    return [np.argwhere(pixels[..., channel]).mean(axis=0)[::-1] / face.width for channel in range(3)]


EXPECTED = [(0.25 + 0.125, 0.5 - 20 / 960), (0.5 + 0.125, 0.5 - 20 / 960), (0.5, 0.5 + 180 / 960)]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("scale", "size"), [(1.0, 512), (1.0, 1024), (1.6, 128)])
def test_eyes_are_level_a_quarter_of_the_side_apart(scale: float, size: int, swapped: bool) -> None:
    image, points = photograph(2400, (1200, 1000), scale)
    face = aligned(image, points[[1, 0, 3, 2]] if swapped else points, size)
    assert face.size == (size, size)
    for found, expected in zip(places(face), EXPECTED, strict=True):
        assert found == pytest.approx(expected, abs=2 / size)


def test_what_lies_beyond_the_photograph_is_mirrored() -> None:
    image, points = photograph(700, (350, 300))
    white = Image.fromarray(np.maximum(np.asarray(image), 60))
    assert np.asarray(aligned(white, points, 256)).min() > 10  # nowhere black; bicubic overshoots
    with pytest.raises(AlignmentError, match="outside of the photograph"):
        aligned(image, points + 5000, 256)


def test_points_that_are_no_face() -> None:
    image, points = photograph()
    with pytest.raises(AlignmentError, match="less than 4 pixels"):
        aligned(image, points[[0, 0, 2, 3]], 64)
    with pytest.raises(AlignmentError, match="missing"):
        aligned(image, points * [np.nan, 1], 64)


def test_a_square_of_more_pixels_than_memory_may_hold() -> None:
    points = np.array([[2400.0, 100], [13_600, 100], [2400, 300], [13_600, 300]])
    with pytest.raises(AlignmentError, match=r"its square takes \d+ megapixels, at most 200 expected"):
        aligned(Image.new("RGB", (16_000, 400)), points, 64)


@pytest.mark.parametrize("far", [-12_000, 1e7, 1e300])
def test_points_that_would_need_more_mirrored_than_memory_holds(far: float) -> None:
    image, points = photograph()
    with pytest.raises(AlignmentError, match="a landmark lies far outside of the photograph"):
        aligned(image, points - [[far, 0], [-far, 0], [0, 0], [0, 0]], 64)
    with pytest.raises(AlignmentError, match=r"square would be \d+ pixels wide, the photograph's longer side \d+$"):
        aligned(image.crop((0, 0, 100, 100)), np.array([[-40.0, 50], [140, 50], [0, 90], [100, 90]]), 64)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two photographs with one and two faces, one without, and one that is broken."""
    image, points = photograph()
    rows = []
    for name, faces in (("a/1.png", 1), ("2.png", 2), ("3.png", 0)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "in" / name)
        rows += [{"image_id": name, **dict(zip(COLUMNS, points.ravel(), strict=True))}] * faces
    (tmp_path / "in/4.png").write_bytes(b"no picture")
    rows += [rows[0] | {"image_id": name} for name in ("4.png", "elsewhere.png")]
    rows.append(dict.fromkeys(COLUMNS, 5.0) | {"image_id": "a/1.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "points.csv", index=False)
    return tmp_path


def faces(folder: Path, names: list[str], rows: list[str] | None = None) -> None:
    """A data set of the same photograph under these names, as Parquet, and a table with a face for each of `rows`."""
    image, points = photograph(400, (210, 180), 0.25)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    content = {"image": [buffer.getvalue()] * len(names), "image_id": names}
    pd.DataFrame(content).to_parquet(folder / "in.parquet")
    numbers = dict(zip(COLUMNS, points.ravel(), strict=True))
    pd.DataFrame([{"image_id": name} | numbers for name in rows or names]).to_csv(folder / "points.csv", index=False)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_data_set_from_the_terminal(data: Path) -> None:
    arguments = ["align", str(data / "in"), str(data / "points.csv"), "-o", str(data / "out"), "--size", "64"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = sorted(str(p.relative_to(data / "out")) for p in (data / "out").rglob("*.png"))
    assert found == ["2-1.png", "2-2.png", "a/1-1.png"]
    assert places(Image.open(data / "out/a/1-1.png"))[0] == pytest.approx(EXPECTED[0], abs=0.04)
    output = done.output.replace("\n", " ")
    assert "3 faces in" in output
    assert "1 without landmarks: 3.png" in output
    assert "1 with landmarks, and not in the data set: elsewhere.png" in output
    assert "image 'a/1.png': less than 4 pixels" in output
    assert "'4.png': not an image" in output
    again = CliRunner().invoke(app, arguments)
    assert "0 faces in" in again.output
    assert "3 were there" in again.output


def test_no_face_is_written_outside_of_the_output(tmp_path: Path) -> None:
    names = ["../../outside.png", "x/../../../up.png", "a/../../b.png"]
    faces(tmp_path, names)
    done = align(f"{tmp_path}/in.parquet", f"{tmp_path}/points.csv", tmp_path / "some/out", 64)
    assert (done.written, done.wrong) == (3, [])
    assert written(tmp_path / "some/out") == ["a/b.png", "outside.png", "x/up.png"]
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_images_that_would_share_a_file_are_kept_apart(tmp_path: Path) -> None:
    names = ["1.jpg", "1-1.jpg", "2.jpg", "2.png", "3.jpg", "b.png", "../b.png"]
    faces(tmp_path, names, ["1.jpg", *names])
    for times in range(2):
        done = align(f"{tmp_path}/in.parquet", f"{tmp_path}/points.csv", tmp_path / "out", 64)
        assert (done.written, done.kept, done.wrong) == ((0, 8, []) if times else (8, 0, []))
    found = written(tmp_path / "out")
    assert [name for name in found if not name.startswith("b")] == [
        *("1-1.jpg.png", "1.jpg-1.png", "1.jpg-2.png"),
        *("2.jpg.png", "2.png.png", "3.png"),
    ]
    assert len(found) == 8
    # and where the other name is that of a third image
    faces(tmp_path, ["1.png", "1.webp", "1.png.jpg"])
    assert align(f"{tmp_path}/in.parquet", f"{tmp_path}/points.csv", tmp_path / "more", 64).written == 3
    assert written(tmp_path / "more") == ["1.png.jpg.png", "1.png.png", "1.webp.png"]


def test_a_name_that_is_too_long_costs_its_image_alone(tmp_path: Path) -> None:
    longest, longer = "l" * 251 + ".png", "l" * 252 + ".png"
    faces(tmp_path, ["1.png", longer, longest, "f/2.png", "f.png/3.png", "z.png"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/f").write_text("in the way")
    done = align(f"{tmp_path}/in.parquet", f"{tmp_path}/points.csv", tmp_path / "out", 64)
    assert written(tmp_path / "out") == ["1.png", "f", "f.png/3.png", longest, "z.png"]
    assert (done.written, len(done.wrong)) == (4, 2)
    assert done.wrong[0].endswith("no file of this name can be written here (File name too long); rename the image")


def test_tables_that_are_none(data: Path) -> None:
    (data / "no.csv").write_text("image_id,x\na,1\n")
    with pytest.raises(AlignmentError, match="column 'left_eye_x' is missing"):
        align(str(data / "in"), str(data / "no.csv"), data / "out")
    (data / "no.csv").write_text(f"image_id,{','.join(COLUMNS)}\nz.png,{','.join('12345678')}\n")
    with pytest.raises(AlignmentError, match=r"none of them is of an image of the data set \(they name 'z.png'"):
        align(str(data / "in"), str(data / "no.csv"), data / "out")
    (data / "no.csv").write_text(f"image_id,{','.join(COLUMNS)}\n")
    with pytest.raises(AlignmentError, match="no rows; a row a face expected"):
        align(str(data / "in"), str(data / "no.csv"), data / "out")


def test_faces_beside_their_photographs_are_refused(data: Path) -> None:
    before = written(data)
    for output in (data / "in", data / "in/faces"):
        with pytest.raises(AlignmentError, match=r"lies in the data set .*; choose a folder outside of it"):
            align(str(data / "in"), str(data / "points.csv"), output, 64)
    assert written(data) == before
    assert align(str(data / "in"), str(data / "points.csv"), data / "in/.faces", 64).written == 3
