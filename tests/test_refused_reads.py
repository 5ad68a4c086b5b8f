"""An output that may be listed but not read: that is said, and never taken for one in which nothing is done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_store import RUN, do_shard, manifest
from typer.testing import CliRunner

from flows.cli import app
from pti_core.alpha.stored import Place, Request, note_left_out, reasons_left_out, studied
from pti_core.checking import check_run
from pti_core.editing import answers, plans
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.status import run_status
from pti_core.storage.files import OutputRefused, StoreError
from pti_core.storage.notes import NoteBook, read_notes
from pti_core.storage.store import Store

ROOT = "refusing://refused-reads/out"


class Refusing(MemoryFileSystem):
    """Lists everything; files whose path has `refused` in it are not given out."""

    protocol = "refusing"
    refused = "nothing"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("refusing://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        if Refusing.refused in path:
            raise PermissionError(13, "Forbidden")
        return super().cat_file(path, start, end, **kwargs)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if Refusing.refused in path:
            raise PermissionError(13, "Forbidden")
        return dict(super().info(path, **kwargs))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    return lambda part: monkeypatch.setattr(Refusing, "refused", part)


def finished(root: str) -> Run:
    """A run whose three shards are done, as far as markers tell."""
    store, config = Store(root), configure("demo")
    content = {"digest": "0", "dataset": "d", "config": config.model_dump(mode="json")}
    if RUN not in store.runs():
        store.write_config(RUN, content)
        store.write_manifest(RUN, manifest())
        for shard in range(3):
            do_shard(store, RUN, shard)
            store.mark_done(RUN, shard, {**(store.marker(RUN, shard) or {}), "digest": "0"})
    return Run(store, RUN, "0", config, "d", "g", "0", "")


def refused(root: str, kind: type[StoreError] = OutputRefused) -> Any:
    return pytest.raises(
        kind, match=rf"output '{re.escape(root)}' cannot be read: access denied .*check the permissions"
    )


def ways(run: Run) -> list[Callable[[], Any]]:
    """What looks at the markers."""
    store = run.store
    return [
        lambda: store.markers(RUN),
        lambda: store.done(RUN),
        lambda: list(check_run(store, RUN, store.markers(RUN))),
        lambda: run_status(store, RUN),
        run.to_do,
    ]


def test_markers_that_may_not_be_read_are_not_missing(refuse) -> None:
    run = finished(ROOT)
    assert list(run.store.done(RUN)) == [0, 1, 2]
    before = run.store.files.find("runs")
    for part in ("/done/", "/done/00001.json"):
        refuse(part)
        for way in ways(run):
            with refused(ROOT):
                way()
    refuse("nothing")
    assert run.store.files.find("runs") == before
    assert (run.to_do(), run_status(run.store, RUN).state) == (([], 5, []), "done")


def test_check_and_status_say_so(refuse) -> None:
    finished(ROOT)
    assert "3 shards read" in CliRunner().invoke(app, ["check", ROOT]).stdout
    refuse("/done/")
    for command in ("check", "status"):
        result = CliRunner().invoke(app, [command, ROOT])
        assert result.exit_code == 1
        assert "shards read" not in result.output
        assert f"error: output '{ROOT}' cannot be read: access denied" in " ".join(result.output.split())


def test_what_is_not_there_is_no_refusal(refuse, tmp_path: Path) -> None:
    for root in (ROOT, str(tmp_path)):
        files = Store(root).files
        files.put("some/folder/a", b"a")
        refuse("elsewhere")
        names = ["some/folder/a", "some/folder/b", "some/folder", "some/folder/a/b"]
        assert files.get_all(names) == {names[0]: b"a"} | dict.fromkeys(names[1:])
        assert [files.exists(name) for name in names] == [True, False, False, False]


def test_a_file_that_may_not_be_looked_at_is_not_missing(refuse) -> None:
    store = Store(ROOT)
    store.files.put("runs/abc/report/index.html", b"page")
    assert store.exists("runs/abc/report/index.html")
    refuse("/report/")
    with refused(ROOT):
        store.exists("runs/abc/report/index.html")


def test_notes_answers_and_studies_that_may_not_be_read(refuse) -> None:
    run = finished(ROOT)
    NoteBook(run.store.files, RUN, 1).failed("no memory")
    note_left_out(run, 0, {"0.png": "why"})
    request = plans.Request(directions={}, strengths=[2.0], images=None, pictures=False)
    plans.mark_answered(run, 0, request, run.store.done(RUN, whole=True)[0], [])
    place = Place("0.png", 0, 0, {})
    part = run.store.part_path("alpha_drift", RUN, 0, 0)
    run.store.files.put(part, b"")
    study = Request(alphas=[30.0], z_samples=1)
    wanted: list[tuple[str, Callable[[], Any]]] = [
        ("/notes/", lambda: read_notes(run.store.files, RUN, [1])),
        ("/alpha/left_out/", lambda: reasons_left_out(run, [0])),
        ("/edits/done/", lambda: answers.read_all_answers(run.store, RUN, [0])),
        (part, lambda: studied(run, [place], study)),
    ]
    for name, way in wanted:
        refuse("nothing")
        assert way() == way()
        refuse(name)
        with refused(ROOT):
            way()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_marker_of_somebody_else_on_a_disk(tmp_path: Path) -> None:
    run = finished(root := str(tmp_path / "out"))
    marker = tmp_path / f"out/runs/{RUN}/done/00001.json"
    marker.chmod(0)
    for way in ways(run):
        with refused(root, StoreError):
            way()
    marker.chmod(0o600)
    assert list(run.store.done(RUN)) == [0, 1, 2]
