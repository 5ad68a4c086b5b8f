"""How a data set on S3 is listed: under which names, and by how many requests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from faulty_proxy import Proxy, proxy_to
from s3_server import s3_server, use

from pti_core.datasets import DatasetError, scan
from pti_core.sources import buckets, files


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, found by the environment; what fails is not tried again by the client."""
    with proxy_to(s3_server().url) as state:
        use(monkeypatch, state.url, AWS_MAX_ATTEMPTS="1")
        yield state


def tar(*names: str) -> bytes:
    """An archive of images of one byte."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"-"))
    return buffer.getvalue()


def ids(dataset: str) -> list[str]:
    return scan(dataset)["image_id"].to_pylist()


def test_braces_in_the_place_of_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    server = s3_server()
    use(monkeypatch, server.url)
    for bucket in ("braces-cats", "braces-dogs"):
        server.bucket(bucket)
        server.s3.put_object(Bucket=bucket, Key="x.tar", Body=tar("1.png", "2.png"))
        for key in ("set/a/1.png", "set/2.png"):
            server.s3.put_object(Bucket=bucket, Key=key, Body=b"-")
    both = "s3://braces-{cats,dogs}"
    assert ids(f"{both}/x.tar") == [f"braces-{pet}/x/{i}.png" for pet in ("cats", "dogs") for i in (1, 2)]
    assert ids("s3://{braces-cats,braces-dogs}/x.tar") == ids(f"{both}/x.tar")
    files = [f"braces-{pet}/set/{name}" for pet in ("cats", "dogs") for name in ("2.png", "a/1.png")]
    assert ids(f"{both}/set") == files
    assert ids(f"{both}/set/*.png") == files[::2]
    assert ids(f"{both}/set/{{2,a/1}}.png") == files


def test_braces_ask_once_for_each_file(proxy: Proxy) -> None:
    bucket, count = s3_server().bucket(), 40
    for i in range(count):
        s3_server().s3.put_object(Bucket=bucket, Key=f"set/{i:02d}.png", Body=b"-")
    assert ids(f"s3://{bucket}/set/{{00..39}}.png") == [f"{i:02d}.png" for i in range(count)]
    assert proxy.requests == {"HEAD": count + 1}  # one more asks whether anybody answers
    with pytest.raises(DatasetError, match=rf"'s3://{bucket}/set/40\.png', one of 41 that the braces name, "):
        scan(f"s3://{bucket}/set/{{00..40}}.png")


def test_a_lost_request_costs_one_more(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one of many files, or for the one there is: it is not taken for missing, nor are all asked for again."""
    monkeypatch.setattr("pti_core.reading.READ_WAITS", (0.0, 0.0))
    bucket = s3_server().bucket()
    for i in range(8):
        s3_server().s3.put_object(Bucket=bucket, Key=f"{i}.png", Body=b"-")
    lost = iter(["500", "dropped before"])
    proxy.fault = lambda method, path: next(lost, None) if path.endswith("7.png") else None
    assert len(ids(f"s3://{bucket}/{{0..7}}.png")) == 8
    assert proxy.requests == {"HEAD": 8 + 1 + 2}
    proxy.reset()
    lost = iter(["", "500", "500"])  # that for an answer is not lost
    assert ids(f"s3://{bucket}/7.png") == ["7.png"]
    assert proxy.requests == {"HEAD": 4}


def test_many_folders_of_a_bucket_are_listed_together(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would take a request; files that lie beside them are listed once."""
    bucket = s3_server().bucket()
    names = [f"n{i:03d}/{k}.png" for i in range(60) for k in range(2)] + ["n00.png", "n0001.png", "é/1.png", "z.png"]
    for name in [*names, "n001/deep/er/1.png", "out/1.png", ".git/1.png", "n002/"]:
        s3_server().s3.put_object(Bucket=bucket, Key=f"set/{name}", Body=b"-")
    data = {"dataset": f"s3://{bucket}/set", "without": f"s3://{bucket}/set/out"}
    one_by_one = scan(**data)
    assert set(one_by_one["image_id"].to_pylist()) == {*names, "n001/deep/er/1.png"}
    assert proxy.requests["GET"] > 60
    monkeypatch.setattr(files, "_FOLDERS", 50)
    monkeypatch.setattr(files, "_BEGINNINGS", 10)
    monkeypatch.setattr(files, "_AT_ONCE", 4)
    proxy.reset()
    assert scan(**data).equals(one_by_one)
    assert proxy.requests["GET"] < 15
    monkeypatch.setattr(files, "_BEGINNINGS", 1)  # fewer than can be asked for at once
    proxy.reset()
    assert scan(**data).equals(one_by_one)
    assert proxy.requests["GET"] > 60


def test_beginnings_of_folders() -> None:
    folders = [f"b/set/n{i:04d}/" for i in range(3000)]
    assert buckets.beginnings(folders, 256) == [f"b/set/n{i:02d}" for i in range(30)]
    assert buckets.beginnings(folders, 2) == ["b/set/n"]
    assert buckets.beginnings(["b/a/", "b/ab/", "b/c/"], 3) == ["b/a/", "b/ab", "b/c/"]
    assert buckets.beginnings(["b/a/"], 5) == ["b/a/"]
