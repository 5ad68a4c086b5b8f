"""Directions as files and as a person writes them."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pti_core.directions import DirectionError, style_factors
from pti_core.directions.files import MAX_BYTES, read_vectors
from pti_core.directions.learned import Learned
from pti_core.directions.specs import parse, resolve
from pti_core.engine import Engine
from pti_core.presets import configure


@pytest.fixture(scope="module")
def engine(tiny_generator):
    return Engine(tiny_generator, configure("demo", {"pivot.w_samples": 400}))


def found(engine, *texts, learn=None):
    return resolve(texts, engine, learn or (lambda uri: pytest.fail(f"{uri} was learned")))[0]


def write(path: Path, array: np.ndarray) -> str:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    else:
        torch.save(torch.from_numpy(array), path)
    return str(path)


@pytest.mark.parametrize("shape", [(24,), (1, 24), (8, 24)])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_each_format_and_shape_gives_the_same_direction(suffix, shape, engine, tmp_path):
    vector = np.random.default_rng(0).normal(size=24).astype(np.float32)
    (direction,) = found(engine, write(tmp_path / f"smile{suffix}", np.broadcast_to(vector, shape).copy()))
    assert direction.name == "smile"
    rows = np.atleast_2d(direction.vector.numpy())
    np.testing.assert_allclose(rows, np.broadcast_to(vector / np.linalg.norm(vector), rows.shape), atol=1e-6)


def test_an_array_of_several_is_chosen_by_what_fits_or_by_its_key(engine, tmp_path):
    a, b = np.eye(24)[:2].astype(np.float32)
    np.savez(tmp_path / "boundary.npz", smile=a, bias=np.float32(3), note="text")
    (direction,) = found(engine, f"{tmp_path}/boundary.npz")
    assert direction.vector[0] == 1
    torch.save({"smile": torch.from_numpy(a), "age": torch.from_numpy(b)}, tmp_path / "both.pt")
    with pytest.raises(DirectionError, match=r"several arrays \(age, smile\); choose one with :key=NAME"):
        found(engine, f"{tmp_path}/both.pt")
    (direction,) = found(engine, f"{tmp_path}/both.pt:key=age:layers=coarse")
    assert (direction.name, direction.layers) == ("age-coarse", "coarse")
    assert direction.vector[0, 1] == 1
    with pytest.raises(DirectionError, match="no array 'hair'; there are: age, smile"):
        found(engine, f"{tmp_path}/both.pt:key=hair")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_file_is_executed(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", w=np.array([Bomb()], dtype=object))
    torch.save({"w": Bomb()}, tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "e.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npz", "c.pt", "d.pt", "e.npy"):
        with pytest.raises(DirectionError, match=rf"'{name}'.*nothing of it was run"):
            read_vectors(name)
    assert not (tmp_path / "executed").exists()


def test_damaged_huge_and_empty_files_get_one_sentence(tmp_path):
    good = io.BytesIO()
    np.savez_compressed(good, w=np.zeros(24, np.float32))
    (tmp_path / "half.npz").write_bytes(good.getvalue()[:100])
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.pt").write_bytes(b"")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    (tmp_path / "promises.npy").write_bytes(header.getvalue())
    for name in ("half.npz", "text.npy", "empty.pt", "promises.npy"):
        with pytest.raises(DirectionError, match=f"{name}' holds more than plain numbers, or is damaged"):
            read_vectors(f"{tmp_path}/{name}")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(MAX_BYTES + 1))
    with pytest.raises(DirectionError, match=r"bomb.npz': 64 MiB"):
        read_vectors(f"{tmp_path}/bomb.npz")
    np.savez(tmp_path / "words.npz", note=np.array("text"))
    with pytest.raises(DirectionError, match="no array of numbers"):
        read_vectors(f"{tmp_path}/words.npz")
    with pytest.raises(DirectionError, match=r"nowhere.npy' cannot be read .*check its path"):
        read_vectors(f"{tmp_path}/nowhere.npy")
    with pytest.raises(DirectionError, match=r"smile.pkl': a file .npy, .npz, .pt expected, or pca:K"):
        read_vectors(f"{tmp_path}/smile.pkl")


def test_specs_are_taken_apart_from_their_end():
    spec = parse("s3://bucket/a:b.npz:layers=coarse+8-9:name=older:key=age")
    assert (spec.source, spec.layers, spec.name, spec.key) == ("s3://bucket/a:b.npz", "coarse+8-9", "older", "age")
    assert parse("pca:0").source == "pca:0"
    with pytest.raises(DirectionError, match=r"option 'layer' with value 'coarse'; :layers=..., :name=..., :key=..."):
        parse("pca:0:layer=coarse")
    with pytest.raises(DirectionError, match="or a file expected"):
        parse(" ")


def test_the_names_of_directions(engine, tmp_path):
    path = write(tmp_path / "my smile (1).npy", np.eye(24)[0])
    names = [d.name for d in found(engine, "pca:0", "pca:0:layers=coarse", "sefa:1", f"{path}:name=older", path)]
    assert names == ["pca-0", "pca-0-coarse", "sefa-1", "older", "my_smile_1"]
    visible = found(engine, "visible")
    assert len(visible) == 2
    assert all(d.name.startswith("pca-") for d in visible)


def test_a_sefa_direction_of_layers_is_the_factor_of_these_layers(engine):
    (direction,) = found(engine, "sefa:2:layers=middle")
    expected = style_factors(engine.generator, engine.statistics, 3, "middle")[2]
    torch.testing.assert_close(direction.vector, expected.vector)


def test_a_learned_direction_is_named_after_its_table_and_tells_how_good_it_is(engine):
    learned = Learned(torch.ones(24), "labels: fine")
    directions, remarks = resolve(["learned:/data/smile.csv"], engine, {"/data/smile.csv": learned}.__getitem__)
    assert directions[0].name == "learned-smile"
    assert remarks == ["labels: fine"]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["pca:24"], "this generator has pca:0 to pca:23"),
        (["sefa:99"], "sefa:0 to sefa:23"),
        (["pca:first"], "a number from 0 expected, as in 'pca:0'"),
        (["pca"], "as in 'pca:0'"),
        (["pca:0", "pca:0"], "two directions have the name 'pca-0'; give one another with :name=NAME"),
        (["pca:0:name=unedited"], "name 'unedited'"),
        (["pca:0:name=a/b"], "name 'a/b'"),
        (["pca:0:layers=fine"], "layers 'fine'"),
        ([], "no direction"),
    ],
)
def test_what_does_not_exist_is_said(texts, says, engine):
    with pytest.raises(DirectionError, match=says):
        found(engine, *texts)
