"""What markers tell of rejects and speed: in `pti status` and summaries, as CSV, and when a run ends early."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import QUICK_SETTINGS, finish
from prefect import flow
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.console import show_summary
from flows.rejects import ENOUGH, Rejects
from flows.runners import started
from flows.shard_work import ShardsFailed, do_shards
from pti_core import report
from pti_core.causes import BY_CAUSE, LINES, UNKNOWN, causes_of, in_lines
from pti_core.freezing.freeze import freeze
from pti_core.html_report import write_page
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.status import run_status
from pti_core.throughput import in_words, throughput
from tasks.shards import invert_shards, measure_shards

GONE = "read FileNotFoundError"


@pytest.fixture
def run(dataset: Any, tiny_checkpoint: str, tmp_path: Path) -> Run:
    """Eight images in two shards, nothing done; two are broken in the first shard, one is gone from each."""
    folder = dataset(8)
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(b"no picture")
    config = configure("demo", QUICK_SETTINGS | {"engine": "noop", "batch": 2})
    run = freeze(str(folder), str(tmp_path / "out"), tiny_checkpoint, config, shard_size=4)
    for name in ("0.png", "7.png"):
        (folder / name).unlink()
    return run


def marker_of(run: Run, shard: int) -> dict[str, Any]:
    content = run.store.marker(run.name, shard)
    assert content is not None
    return {key: value for key, value in content.items() if key not in ("run", "shard")}


def test_markers_count_rejects_by_cause_told_or_read(run: Run) -> None:
    finish(run)
    first = marker_of(run, 0)["counts"]
    (broken,) = (cause for cause in first[BY_CAUSE] if cause.startswith("decode "))
    rejects = run.store.read("rejects", run=run.name)
    by_table = (rejects["stage"] + " " + rejects["error"]).value_counts().to_dict()
    assert by_table == {broken: 2, GONE: 2}
    assert first == {
        "manifest": 4,
        "pivots": 1,
        "rejects": 3,
        "temporary": 1,
        "gone": 0,
        BY_CAUSE: {broken: 2, GONE: 1},
    }
    told = invert_shard(run, 0)
    measure_shard(run, 0, told["files"], told["seconds"], told["counts"])  # of whole parts, as the flow does
    assert marker_of(run, 0)["counts"] == first
    assert run_status(run.store, run.name).causes == {broken: 2, GONE: 2}


def test_a_marker_without_rejects_has_no_causes(dataset: Any, tiny_checkpoint: str, tmp_path: Path) -> None:
    config = configure("demo", QUICK_SETTINGS | {"engine": "noop"})
    run = finish(freeze(str(dataset(2)), str(tmp_path / "out"), tiny_checkpoint, config))
    assert marker_of(run, 0)["counts"] == {"manifest": 2, "pivots": 2, "rejects": 0, "temporary": 0, "gone": 0}
    assert run_status(run.store, run.name).causes == {}


def test_causes_of_earlier_versions_are_unknown_and_their_summaries_are_completed(run: Run) -> None:
    finish(run)
    content = marker_of(run, 0)
    del content["counts"][BY_CAUSE]
    run.store.mark_done(run.name, 0, content)
    found = report.publish(run)
    assert found["reject_causes"] == {UNKNOWN: 3, GONE: 1}
    path = f"runs/{run.name}/report/{report.SUMMARY}"
    written = json.loads(run.store.files.get(path, "none"))
    assert written["summary"]["reject_causes"] == found["reject_causes"]
    for key in ("reject_causes", "throughput"):
        del written["summary"][key]
    run.store.files.put(path, json.dumps(written).encode())
    assert report.summary(run) == found


def test_the_most_frequent_causes_are_shown_in_few_lines() -> None:
    counts = [{"rejects": n + 1, BY_CAUSE: {f"read E{n}": n + 1}} for n in range(LINES + 2)]
    assert in_lines(causes_of(counts[:2])) == ["2 read E1", "1 read E0"]
    assert in_lines(causes_of(counts)) == ["7 read E6", "6 read E5", "5 read E4", "4 read E3", "6 for 3 other causes"]
    assert in_lines(causes_of(counts[:LINES])) == [f"{n} read E{n - 1}" for n in range(LINES, 0, -1)]
    assert causes_of([{"rejects": 3, BY_CAUSE: {"read E": 1}}]) == {UNKNOWN: 2, "read E": 1}


def test_throughput_is_of_the_seconds_of_markers() -> None:
    markers = [{"counts": {"manifest": 4}, "seconds": 4.0 * each} for each in range(1, 22)]
    found = throughput(markers)
    assert found == {"images_an_hour": pytest.approx(3600 / 11), "median": 11.0, "p95": 20.0}
    assert in_words(found) == (
        "327 images an hour and worker; seconds per image of a shard: median 11, 95th percentile 20"
    )
    assert throughput([]) is None
    assert throughput([{"counts": {"manifest": 1}, "seconds": 0.0}]) is None


def test_causes_and_speed_are_shown_everywhere(run: Run) -> None:
    finish(run)
    summary = report.publish(run)
    broken, gone = in_lines(summary["reject_causes"])
    speed = in_words(summary["throughput"])
    words = report.markdown(summary).replace("\\", "")
    assert f"- {broken}\n- {gone}" in words
    assert speed in words
    screen = Console(record=True, width=200)
    show_summary(screen, summary, "out")
    shown = screen.export_text()
    assert f"4 images were rejected:\n  {broken}\n  {gone}\n" in shown
    page = Path(write_page(run, 0).path).read_text()
    assert f"By cause: {broken}; {gone}." in page
    result = CliRunner().invoke(app, ["status", run.store.root])
    assert f"run {run.name} rejected {broken}\nrun {run.name} rejected {gone}\n" in result.output


def test_shards_as_csv(run: Run) -> None:
    inverted = invert_shard(run, 0)
    measure_shard(run, 0, inverted["files"], inverted["seconds"], inverted["counts"])
    result = CliRunner().invoke(app, ["status", run.store.root, "--shards"])
    assert result.exit_code == 0
    found = pd.read_csv(io.StringIO(result.stdout), dtype={"run": str}).set_index("shard")
    assert list(found.columns) == ["run", "images", "pivots", "rejects", "temporary", "seconds", "state"]
    assert found["run"].unique().tolist() == [run.name]
    assert found.loc[0, ["images", "pivots", "rejects", "temporary", "state"]].tolist() == [4, 1, 3, 1, "done"]
    assert found.loc[0, "seconds"] == pytest.approx(marker_of(run, 0)["seconds"])
    assert found.loc[1, ["images", "state"]].tolist() == [4, "left"]
    assert found.loc[1, ["pivots", "rejects", "temporary", "seconds"]].isna().all()


def test_shards_as_csv_of_runs_that_can_be_read(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "out/runs/0123456789ab"
    other.mkdir()
    (other / "config.json").write_text("{")
    result = CliRunner().invoke(app, ["status", run.store.root, "--shards"])
    assert result.exit_code == 1
    assert pd.read_csv(io.StringIO(result.stdout), dtype={"run": str})["run"].unique().tolist() == [run.name]
    assert "0123456789ab" in result.stderr


def counts(images: int, rejects: int, cause: str = GONE) -> dict[str, Any]:
    """Of a shard, as its last task returns them."""
    return {"shard": 0, "images": images, "rejects": rejects} | ({BY_CAUSE: {cause: rejects}} if rejects else {})


def test_a_run_is_to_end_once_enough_images_say_so() -> None:
    rejects = Rejects(0.2, [0, 1])
    assert rejects.too_many(counts(ENOUGH - 1, 100)) is None
    assert rejects.too_many(counts(1, 1, "read TimeoutError")) == (
        "101 of 200 images were rejected (50.5%), more than the share max_rejects=0.2 allows (100 of them read "
        "FileNotFoundError); see to that, or allow more, and run it again: what is done stays"
    )
    rejects = Rejects(0.2, [0, 1])
    assert rejects.too_many(counts(ENOUGH, ENOUGH // 5)) is None  # not more than that
    assert rejects.too_many(counts(1, 1)) is not None
    assert Rejects(None, [0]).too_many(counts(1, 1)) is None
    assert Rejects(0.0, [0]).too_many(counts(300, 0)) is None
    small = Rejects(0.5, [2, 5])  # what a run has left, which may be little
    assert small.too_many(counts(2, 2) | {"shard": 2}) is None
    assert small.too_many({"shard": 5, "images": 1, "rejects": 0}) is not None


def test_what_was_rejected_before_does_not_end_a_run() -> None:
    rejects = Rejects(0.2, [1, 2])
    assert rejects.too_many(counts(ENOUGH, ENOUGH)) is None  # shard 0 is only tried again
    assert rejects.too_many(counts(ENOUGH, 10) | {"shard": 1}) is None
    assert rejects.too_many(counts(ENOUGH, 150) | {"shard": 1}) is not None


def test_a_run_that_rejects_too_much_ends_and_what_is_done_stays(
    dataset: Any, tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.rejects.ENOUGH", 3)
    folder = dataset(12)
    for i in range(12):
        if i % 2:
            (folder / f"{i}.png").write_bytes(b"no picture")
    run = freeze(str(folder), str(tmp_path / "out"), tiny_checkpoint, configure("noop"), shard_size=1)

    @flow(name="work")
    def work(most: float | None) -> None:
        pending, done, _ = run.to_do()
        plan = {"pending": pending, "images": run.manifest.rows, "done": done}
        common = {"root": run.store.root, "run": run.name}
        steps = [invert_shards, measure_shards]
        do_shards(
            steps, plan, 1, lambda step, x: common | {"inverted" if step else "numbers": x}, started("threads", 1), most
        )

    with prefect_test_harness(server_startup_timeout=400):
        with pytest.raises(ShardsFailed, match=r"^ended with \d+ of 12 shards left; .* of them decode .*run it again"):
            work(0.2)
        left = len(run.to_do().shards)
        assert 0 < left < 10
        work(None)
    assert run.to_do().shards == []
