"""Names of pictures, edited and exported ones: for any image_id, on any file system."""

import math
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from test_edit import do, finish, table

from pti_core.editing.checking import check_edits
from pti_core.editing.pictures import picture_path
from pti_core.editing.plans import plan
from pti_core.editing.report import publish
from pti_core.export import export_images
from pti_core.storage.store import Store

ASKED = (None, ["pca:0"], [2.0])
IDS = ["A.png", "a.png", "l" * 250 + ".png", "l" * 300 + ".png", "é?" * 60 + ".png", "/".join(["m" * 90] * 9) + ".png"]


@pytest.fixture(scope="module")
def archive(pictures, tmp_path_factory):
    """Images of an archive, where names may be longer than a file's."""
    folder = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name, picture in zip(IDS, pictures, strict=False):
            Image.fromarray(picture).save(folder / "one.png")
            archive.write(folder / "one.png", name)
    return folder / "set.zip"


@pytest.fixture(scope="module")
def finished(archive, tiny_checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    finish(archive, root, tiny_checkpoint, shard_size=len(IDS))
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A run of one shard; a copy of its own."""
    return shutil.copytree(finished, tmp_path / "out")


def folds_case(root):
    """From now on files have their names in capitals too, as on a disk that takes those for small ones."""
    for config in root.glob("runs/*/config.json"):
        config.with_name("CONFIG.JSON").symlink_to(config.name)


def test_a_name_that_is_no_files_costs_no_image_of_its_shard(root):
    planned, made = do(root, *ASKED)
    assert made == {0: len(IDS)}
    rows = table(root).set_index("image_id")
    assert all((root / picture).is_file() for picture in rows["picture"])
    folder = f"runs/{planned.run.name}/edits/pca-0"
    for plain in ("A.png", "a.png", "l" * 250 + ".png"):
        assert rows["picture"][plain] == f"{folder}/{plain}/+2.png"
    cut = Path(rows["picture"]["l" * 300 + ".png"]).parent.name
    assert cut.startswith("l" * 200 + "-")
    assert max(len(part.encode()) for picture in rows["picture"] for part in Path(picture).parts) <= 255
    assert max(len(picture.encode()) for picture in rows["picture"]) <= 700
    assert list(check_edits(planned.run.store, planned.run.name)) == [(0, [])]
    assert plan(str(root), *ASKED).pending == []


def test_images_whose_names_differ_in_capitals_share_no_picture(root):
    folds_case(root)
    do(root, *ASKED)
    pictures = table(root)["picture"]
    assert len({picture.casefold() for picture in pictures}) == len(IDS)
    assert sum(picture.endswith("/pca-0/a.png/+2.png") for picture in pictures) == 1


def test_pictures_that_are_there_keep_their_names(root):
    asked = (*ASKED, IDS[:2])
    planned, _ = do(root, *asked)
    before, sheet = table(root), Path(publish(planned.run, planned.request).sheet)
    shown = sheet.read_bytes()
    folds_case(root)
    assert plan(str(root), *asked).pending == []
    publish(planned.run, planned.request)
    assert sheet.read_bytes() == shown
    do(root, None, ["pca:0"], [2.0, 3.0], IDS[:2])
    after = table(root)
    assert after[after["strength"] == 2.0]["picture"].tolist() == before["picture"].tolist()
    assert after["picture"].str.endswith("/A.png/+3.png").sum() == 0
    assert list(check_edits(planned.run.store, planned.run.name)) == [(0, [])]


def test_images_whose_names_differ_in_capitals_are_exported_as_two_files(root, tmp_path, monkeypatch):
    stat = os.stat

    def folded(path, *args, **kwargs):
        """As on a disk that takes capital letters for small ones."""
        try:
            return stat(path, *args, **kwargs)
        except FileNotFoundError:
            return stat(Path(path).with_name(Path(path).name.swapcase()), *args, **kwargs)

    with monkeypatch.context() as patches:
        patches.setattr(os, "stat", folded)
        export_images(str(root), tmp_path / "folded")
    own = {path.name.partition("-")[0] for path in (tmp_path / "folded").iterdir() if "-" in path.name}
    assert own == {"A.png", "a.png"}
    assert not {"A.png", "a.png"} & {path.name for path in (tmp_path / "folded").iterdir()}
    export_images(str(root), tmp_path / "faces")
    assert {"A.png", "a.png"} <= {path.name for path in (tmp_path / "faces").iterdir()}


def test_no_two_strengths_share_a_picture(tmp_path):
    store = Store(str(tmp_path))
    strengths = [2.0, 2.0000001, math.nextafter(2.0, 3.0), 1 / 3, 0.333333, -1e-7, 1234567.0, 1234568.0, 1e30]
    paths = [Path(picture_path(store, "abc", "pca-0", "1.png", strength)).name for strength in strengths]
    assert len(set(paths)) == len(strengths)
    assert (paths[0], paths[1], paths[5]) == ("+2.png", "+2.0000001.png", "-1e-07.png")
    assert [float(path.removesuffix(".png")) for path in paths] == strengths
