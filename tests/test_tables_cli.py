"""`pti tables` as a person runs it, with columns of their own beside; and what its page tells them to run."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import finish
from PIL import Image
from typer.testing import CliRunner

from flows import cli
from pti_core.freezing.freeze import freeze
from pti_core.large_tables import wide
from pti_core.large_tables.gathering import gather
from pti_core.large_tables.joined import JoinError, read_joined
from pti_core.presets import configure

PAGE = (Path(__file__).parents[1] / "docs/tables.md").read_text()
CAPTIONS = 'image_id,caption,score,split\n0.png,"red, blue\nor ""green""",1,train\n1.png,é,2,\nNA,none,3,test\n'


@pytest.fixture(scope="module")
def root(pictures, tiny_checkpoint, tmp_path_factory) -> Path:
    """A run of four shards that does nothing; one image is rejected, one has an accent, one is called NA."""
    folder = tmp_path_factory.mktemp("noop")
    (folder / "data").mkdir()
    for name, picture in zip(("0.png", "1.png", "2.png", "NA.png", "é.png"), pictures, strict=False):
        Image.fromarray(picture).save(folder / "data" / name)
    (folder / "data/broken.png").write_text("no image")
    finish(freeze(str(folder / "data"), str(folder / "out"), tiny_checkpoint, configure("noop"), shard_size=2))
    return folder / "out"


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def pti(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def images_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "images.parquet").set_index("image_id")


def test_the_command(root, tmp_path):
    (tmp_path / "captions.csv").write_text(CAPTIONS)
    (run,) = (path.name for path in (root / "runs").iterdir())
    result = pti("tables", root, "-o", tmp_path / "large", "--join", tmp_path / "captions.csv")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"run {run}: 6 images, 1 of them rejected"
    assert lines[1] == f"{tmp_path}/large/images.parquet (6 rows, 0.0 MiB)"
    assert [re.search(r"/(\w+)\.parquet \((\d+) row", line).groups() for line in lines[2:6]] == [
        ("pivots", "5"),
        ("metrics", "15"),
        ("locality", "0"),
        ("rejects", "1"),
    ]
    assert lines[6:] == [f"--join '{tmp_path}/captions.csv': 2 of 3 rows matched, of 6 images"]
    images = images_of(tmp_path / "large")
    assert images.loc["0.png", ["caption", "score", "split"]].tolist() == ['red, blue\nor "green"', 1, "train"]
    assert images.loc["1.png", "caption"] == "é"
    assert images.loc["2.png", ["caption", "score", "split"]].isna().all()
    assert list(images.columns)[-3:] == ["caption", "score", "split"]


def test_a_part_of_a_run(root, tmp_path):
    out = shutil.copytree(root, tmp_path / "out")
    next(out.rglob("done/00001.json")).unlink()
    result = pti("tables", out, "-o", tmp_path / "large")
    assert result.exit_code == 1
    assert (
        "is unfinished (2 of 3 shards are done); the same `pti run` again finishes it, and --partial" in result.output
    )
    result = pti("tables", out, "-o", tmp_path / "large", "--partial")
    assert result.exit_code == 0, result.output
    assert "note: these are 2 of 3 shards; `pti run` again finishes the run" in result.output
    assert len(images_of(tmp_path / "large")) == 4


def test_names_that_match_nothing_are_told(root, tmp_path):
    (tmp_path / "labels.csv").write_text("image_id,label\n0,cat\n1,dog\n")
    result = pti("tables", root, "-o", tmp_path / "large", "--join", tmp_path / "labels.csv")
    assert (
        "0 of 2 rows matched, of 6 images; it names '0', which has to be written as in images.parquet" in result.output
    )
    assert images_of(tmp_path / "large")["label"].isna().all()


def test_columns_of_any_type_are_joined_from_parquet(root, tmp_path):
    decomposed = "e\u0301.png"  # as a Mac writes it
    own = pa.table(
        {
            "vector": pa.array([[1.0, 2.0], [3.0], None], pa.list_(pa.float32())),
            "image_id": pa.array(["2.png", decomposed, "gone.png"]).dictionary_encode(),
            "label": pa.array(["cat", "dog", "cat"]).dictionary_encode(),
            "nothing": pa.nulls(3),
            "when": pa.array([1, 2, 3], pa.timestamp("ms")),
        }
    )
    pq.write_table(own, tmp_path / "own.parquet")
    done = gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"), window=2)
    assert done.joined is not None
    assert (done.joined.rows, done.joined.matched) == (3, 2)
    images = images_of(tmp_path / "large")
    assert list(images.loc["é.png", ["label", "when"]]) == ["dog", pd.Timestamp(2, unit="ms")]
    assert images.loc["2.png", "vector"].tolist() == [1.0, 2.0]
    assert images["label"].notna().sum() == 2
    own.to_pandas().set_index("image_id").drop(columns=["vector"]).to_parquet(tmp_path / "own.parquet")
    gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"))
    assert images_of(tmp_path / "large")["label"].notna().sum() == 2


def test_views_of_text_are_joined_and_what_cannot_be_is_named(root, tmp_path):
    own = {"image_id": pa.array(["0.png"], pa.string_view()), "a": pa.array(["b"], pa.string_view())}
    pq.write_table(pa.table(own | {"c": pa.array([b"d"], pa.binary_view())}), tmp_path / "own.parquet")
    gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"))
    assert images_of(tmp_path / "large").loc["0.png", ["a", "c"]].tolist() == ["b", b"d"]
    nested = pa.array([{"f": "x"}], pa.struct([("f", pa.string_view())]))
    pq.write_table(pa.table(own | {"e": nested}), tmp_path / "own.parquet")
    with pytest.raises(JoinError, match=r"own\.parquet': column 'e' is of type struct<f: string_view>; save it as"):
        gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"))
    pq.write_table(pa.table({"image_id": ["0.png"]}), tmp_path / "own.parquet")
    gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"))


def test_a_later_version_of_an_image_has_the_row_of_its_name_unless_it_has_its_own(tmp_path):
    (tmp_path / "c.csv").write_text("image_id,note\na.png,a\nb,b\nb@2,own\n")
    joined = read_joined(str(tmp_path / "c.csv"), ())
    ids = pa.chunked_array([["a.png", "a.png@2", "a.png@13", "b@2"], ["b@2@2", "c@2", "a.png@x"]])
    assert joined.columns(ids)["note"].to_pylist() == ["a", "a", "a", "own", "own", None, None]
    assert joined.matched == 2  # rows, not images


def test_a_late_value_of_another_kind_makes_the_column_text(root, tmp_path):
    rows = [f"{i:07d}.png,{i}" for i in range(100_000)]
    (tmp_path / "c.csv").write_text("\n".join(["image_id,note", "2.png,7", *rows, "0.png,seven"]))
    gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "c.csv"))
    assert images_of(tmp_path / "large").loc[["2.png", "0.png"], "note"].tolist() == ["7", "seven"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,caption\n0.png,a\n", "column 'image_id' is missing; there are name, caption"),
        ("image_id,Status,x,shard\n0.png,a,b,1\n", "columns of its own called Status, shard; rename them"),
        ("image_id,a\n0.png,1\n1.png,1\n0.png,2\n", "1 image has more than one row, '0.png' first; one row an image"),
        ("image_id,a,a\n0.png,1,2\n", "two columns are called 'a'; rename one"),
        ("image_id,a,A\n0.png,1,2\n", "two columns are called 'a' and 'A'; rename one"),
        ("image_id,Image_ID\n0.png,1\n", "two columns are called 'image_id' and 'Image_ID'; rename one"),
        ("image_id,a\n0.png,1,2\n", "cannot be read (ArrowInvalid"),
        ("", "cannot be read"),
        ("image_id,a\n0.png,M\xfcller\n", "column 'a' is not UTF-8; save the file as that"),
        ("image_id,\xe4\n0.png,b\n", "cannot be read (UnicodeDecodeError"),
    ],
)
def test_files_that_cannot_be_joined(root, tmp_path, text, sentence):
    (tmp_path / "own.csv").write_bytes(text.encode("cp1252"))
    result = pti("tables", root, "-o", tmp_path / "large", "--join", tmp_path / "own.csv")
    assert result.exit_code == 1
    assert sentence in result.output
    assert f"error: --join '{tmp_path}/own.csv'" in result.output
    assert not (tmp_path / "large").exists()


def test_files_that_are_no_tables(root, tmp_path):
    for name, sentence in (("own.json", "a .csv or .parquet expected"), ("no.csv", "no such file; check the path")):
        with pytest.raises(JoinError, match=sentence):
            gather(str(root), str(tmp_path / "large"), join=str(tmp_path / name))
    with pytest.raises(JoinError, match="the address holds a user name or password"):
        gather(str(root), str(tmp_path / "large"), join="s3://key:secret@bucket/own.csv")
    pq.write_table(pa.table({"image_id": ["a", None]}), tmp_path / "own.parquet")
    with pytest.raises(JoinError, match="1 row has no image_id; remove it"):
        gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"))
    pq.write_table(pa.table({"image_id": [["a"]]}), tmp_path / "own.parquet")
    with pytest.raises(JoinError, match=r"image_id is of type list.*; text expected"):
        gather(str(root), str(tmp_path / "large"), join=str(tmp_path / "own.parquet"))


def test_the_page_lists_the_columns_of_images():
    assert wide.docs() in PAGE


def examples(word: str) -> list[str]:
    """The blocks of the page's part on large files that import this package."""
    part = PAGE[PAGE.index("## In a few large files") : PAGE.index("### `manifest`")]
    found = [code for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL) if f"import {word}" in code]
    assert found
    return found


@pytest.mark.parametrize("package", ["pandas", "duckdb", "polars"])
def test_the_examples_of_the_page_run(package, root, tmp_path, monkeypatch, capsys):
    found = examples(package)
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root, tmp_path / "out/photos")
    (tmp_path / "captions.csv").write_text(CAPTIONS)
    assert pti("tables", "out/photos", "-o", "large", "--join", "captions.csv").exit_code == 0
    for code in found:
        exec(code, {})
        assert capsys.readouterr().out.strip(), code
