"""Options of the `pti` command: what is refused before anything is written, and what the helps and hints say."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from flows import alpha_cli, cli, console, edit_cli, status_cli
from flows.console import show_summary
from flows.errors import one_sentence, sentence
from flows.run_cli import without_overwrite
from flows.shard_work import ShardsFailed
from pti_core.freezing.freeze import freeze
from pti_core.generators.checkpoints import CheckpointError, load_generator
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard
from pti_core.sources.base import DatasetError
from pti_core.status import RunStatus


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No server, and lines that are not broken."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def pti(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def finish(run):
    for shard in run.to_do().shards:
        measure_shard(run, shard, invert_shard(run, shard)["files"])
    return run


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--address", "tcp://head:8786"],
            "--address tcp://head:8786 is for a cluster: add --runner dask or --runner ray",
        ),
        (["--resource", "GPU=1"], "--resource GPU=1 is for a cluster: add --runner dask or --runner ray"),
        (["--runner", "dask"], "runner 'dask': its workers need a Prefect server to report to"),
        (["--runner", "ray", "--address", "head:6379"], "runner 'ray': its workers need a Prefect server"),
    ],
)
def test_wrong_options_of_a_cluster_leave_no_run_behind(dataset, tiny_checkpoint, tmp_path, options, sentence):
    out = tmp_path / "out"
    for command in (
        ["run", dataset(1), "-o", out, "--generator", tiny_checkpoint],
        ["edit", out],
        ["alpha-study", out],
    ):
        result = pti(*command, *options)
        assert result.exit_code == 1
        assert f"error: {sentence}" in result.output
    assert not out.exists()


@pytest.mark.parametrize(("name", "value"), [("PTI_DEVICE", "cuda:99"), ("PTI_CORES", "0")])
def test_a_device_that_cannot_be_used_leaves_no_run_behind(
    dataset, tiny_checkpoint, tmp_path, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    result = pti("run", dataset(1), "-o", tmp_path / "out", "--generator", tiny_checkpoint)
    assert result.exit_code == 1
    assert f"error: {name} '{value}'" in result.output
    assert not list((tmp_path / "out").rglob("config.json"))


def test_a_server_of_prefect_s_own_that_does_not_start_in_time_has_a_way_out():
    said = sentence(RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server."))
    assert said.startswith("Timed out while attempting to connect to ephemeral Prefect API server; the machine may be")
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=600" in said


def test_ctrl_c_ends_a_script_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise KeyboardInterrupt
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped\n")


def test_the_files_of_a_pattern_that_was_not_quoted(tmp_path):
    result = pti("run", "a.png", "b.png", "c.png", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "unexpected extra argument(s) (b.png and 1 more); quote a pattern: 'faces/*.png'" in result.output
    assert "extra argument(s) (b.png); quote" in pti("run", "a.png", "b.png", "-o", tmp_path / "out").output
    assert list(tmp_path.iterdir()) == []


def test_addresses_that_name_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"'http://127.0.0.1:9/x.pkl': cannot be fetched \(Client.*check the"):
        load_generator("http://127.0.0.1:9/x.pkl")
    with pytest.raises(DatasetError, match="dataset 's3://': no bucket is named; name a bucket, as in s3://faces"):
        freeze("s3://", str(tmp_path / "out"), "pocket", configure("demo"))


@pytest.mark.parametrize(
    "command", ["status", "show", "check", "report", "tables", "export", "align", "inspect", "convert"]
)
def test_credentials_are_used_before_anything_is_read(command, tmp_path, monkeypatch):
    class Used(Exception):
        pass

    def use(block):
        raise Used(block)

    monkeypatch.setattr("tasks.credentials.use_credentials", use)
    more = {"export": ["a.png"], "convert": [tmp_path / "a.pt"], "align": ["a.csv", "-o", tmp_path]}
    more["tables"] = ["-o", tmp_path]
    group = ["generator"] if command in ("inspect", "convert") else []
    result = pti(*group, command, "memory://nowhere", *more.get(command, []), "--credentials", "mine")
    assert isinstance(result.exception, Used)
    assert result.exception.args == ("mine",)


def test_commands_without_credentials_do_without_prefect(tmp_path):
    code = "import atexit, sys; atexit.register(lambda: print('prefect' in sys.modules))"
    command = [sys.executable, "-c", f"{code}; from flows.cli import app; app()", "status", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "no run there" in result.stderr
    assert result.stdout == "False\n"


# --- helps and hints -------------------------------------------------------------------------------------------------


def test_help_and_version():
    shown = pti("--help").output
    assert shown.rstrip().endswith("Start with: pti run demo -o out/demo --preset demo")
    commands = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert commands[:3] == ["run", "status", "show"]
    assert pti("--version").output == "pti 0.1.0\n"
    shown = " ".join(pti("run", "--help").output.replace("│", " ").split())
    for text in ("deletes the run's results, edits and studies", "N images; makes a run of its own", "path or URL"):
        assert text in shown


def test_the_hint_of_a_root_with_several_runs_reads_one(tmp_path):
    for run, value in (("abc", 1.0), ("def", 2.0)):
        (tmp_path / f"metrics/run={run}/shard=00000").mkdir(parents=True)
        pd.DataFrame({"lpips": [value]}).to_parquet(tmp_path / f"metrics/run={run}/shard=00000/part-0.parquet")
    line = console.reading(f"{tmp_path}/", "metrics", "def", False)
    assert line == f'pandas.read_parquet("{tmp_path}/metrics", filters=[("run", "==", "def")])'
    assert eval(line, {"pandas": pd})["lpips"].to_list() == [2.0]  # noqa: S307
    assert console.reading("out", "edits", "def", True) == 'pandas.read_parquet("out/edits")'


@pytest.mark.parametrize(("rejected", "text"), [(1, "1 image was rejected:"), (2, "2 images were rejected:")])
def test_the_summary_counts_rejects_in_words(rejected, text):
    summary = {"run": "abc", "images": 0, "rejected": rejected, "reject_messages": ["m"], "contact_sheet": None}
    screen = Console(record=True, width=200)
    show_summary(screen, summary | {"report": None}, "out", alone=False)
    shown = screen.export_text()
    assert text in shown
    assert 'rejects        pandas.read_parquet("out/rejects", filters=[("run", "==", "abc")])' in shown


def test_a_run_without_measures_shows_no_empty_table():
    none = {"run": "abc", "images": 2, "rejected": 0, "medians": {"stored": {"lpips": None}}, "delta_bytes": 0.0}
    screen = Console(record=True, width=200)
    show_summary(screen, none | {"locality": {}, "contact_sheet": None, "report": None}, "out")
    shown = screen.export_text().splitlines()
    assert shown[0] == "run abc: 2 images, and no measures (the engine noop takes none)"
    assert len(shown) == 2


def test_brackets_in_a_path_are_shown_as_they_are(monkeypatch):
    root, screen = "/tmp/o [x]/run[bold]", Console(record=True, width=200)
    summary = {"run": "abc", "images": 0, "rejected": 0, "contact_sheet": f"{root}/sheet.png"}
    show_summary(screen, summary | {"report": f"{root}/index.html"}, root)
    view = console.ProgressView(screen)
    view.say_last(f"stopped {root}")
    monkeypatch.setattr(edit_cli, "console", screen)
    edit_cli._show({"run": "abc", "images": 1, "medians": [], "sheet": f"{root}/edits.png"}, root, True)
    monkeypatch.setattr(alpha_cli, "console", screen)
    alpha_cli._show({"findings": [], "page": f"{root}/page.html", "table": f"{root}/findings.csv"})
    shown = screen.export_text()
    for place in ("sheet.png", "index.html", "edits.png", "runs/abc/edits/", "page.html", "findings.csv"):
        assert f"  {root}/{place}" in shown
    assert f"stopped {root}" in shown


@pytest.mark.parametrize(("width", "terminal"), [(80, False), (80, True), (250, True)])
def test_status_cuts_nothing_off(width, terminal, monkeypatch, capsys):
    address = "s3://a-bucket-with-a-long-name/" + "and/folders/" * 6 + "*.png"
    screen = Console(width=width, force_terminal=terminal, record=True)
    monkeypatch.setattr(status_cli, "console", screen)
    runs = [
        RunStatus("0123456789ab", "paper", address, 1_000_000, 15_625, 10_000, 640_000, 12_345, 0, [], [], 360_000.0),
        RunStatus("ba9876543210", "demo", "demo", 12, 1, 1, 12, 0, 0, [], [], 0.0),
    ]
    status_cli._show_runs(runs)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    row = next(line for line in lines if line.startswith("0123456789ab"))
    for cell in ("unfinished", "640000 / 1000000", "10000 / 15625", "12345", "4 d 4 h", "paper"):
        assert cell in row
    if terminal and width == 80:
        assert address not in row
        assert f"run 0123456789ab is of {address}" in screen.export_text().replace("\n", "")
    else:
        assert row.endswith(address)


# --- advice that works -----------------------------------------------------------------------------------------------


def test_a_reject_that_was_saved_again_is_added_by_extend(dataset, pictures, tiny_checkpoint, tmp_path):
    folder, out, config = dataset(2), str(tmp_path / "out"), configure("noop", {"seed": 1})
    Image.fromarray(pictures[2]).convert("L").save(folder / "grey.png")
    first = finish(freeze(str(folder), out, tiny_checkpoint, config))
    (message,) = first.store.read("rejects", run=first.name)["message"]
    way_out = "add it with --extend (existing=extend), or start with --convert (convert=true; a new run)"
    assert message.endswith(f"re-save it as RGB and {way_out}")
    Image.fromarray(pictures[2]).save(folder / "grey.png")
    again = finish(freeze(str(folder), out, tiny_checkpoint, config, existing="extend"))
    assert again.name == first.name
    assert again.remarks == ("1 changed file is appended as shard 1",)
    found = again.store.read("pivots", run=again.name)["image_id"]
    assert sorted(found) == ["0.png", "1.png", "grey.png@2"]
    converted = configure("noop", {"seed": 1, "image.convert": True})
    assert freeze(str(folder), out, tiny_checkpoint, converted).name != first.name


def test_what_ends_an_overwrite_is_not_overcome_by_another_one():
    said = "run the same command again"
    with (
        pytest.raises(RuntimeError, match=f"^{said}; without --overwrite, which would do all"),
        without_overwrite(True),
    ):
        raise ShardsFailed(said)
    with pytest.raises(ShardsFailed, match=f"^{said}$"), without_overwrite(False):
        raise ShardsFailed(said)


def long_options(command) -> set[str]:
    """Of a command and all below it."""
    own = {name for given in command.params for name in given.opts + given.secondary_opts if name.startswith("--")}
    return own.union(*map(long_options, getattr(command, "commands", {}).values()))


def test_every_option_stands_in_some_page():
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "deployments/README.md", *(root / "docs").glob("*.md")]
    told = set(re.findall(r"--[a-z][a-z-]*", "\n".join(page.read_text() for page in pages)))
    assert long_options(typer.main.get_command(cli.app)) - told == set()
