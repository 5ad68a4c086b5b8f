"""The evaluation set: what is in the repository is what its script plans, and no face that anything was fitted to.

And the benchmarks: tables and plots of what sides have measured, what fails CI, a row for each kind of data set.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import gpu, small
from benchmarks.bench import PAPER, about, kept_from, summary, write
from benchmarks.gpu import Part, run_all
from benchmarks.operators import counts
from benchmarks.profiled import Kernel, Stage, busy_seconds, is_matrix_work, kernels_of, profiled, shares, stage_of
from benchmarks.side import filled
from benchmarks.steps import MAIN, in_a_process, timed
from pti_core.config import ImageConfig
from pti_core.datasets import scan
from pti_core.engine import Engine
from pti_core.images import decode
from pti_core.inversions import Target
from pti_core.presets import configure
from pti_core.reading import read_bytes

ROOT = Path(__file__).parents[1]
FITTED_BELOW = 10_000  # seeds of the faces that the pocket generator was fitted to


def test_the_faces_are_those_of_the_script_and_can_be_read(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import make_faces64

    planned = make_faces64.plan(64)
    names = [f"{seed}-{paint.__name__.replace('_', '-') if paint else 'clean'}.png" for seed, paint in planned]
    listing = scan(str(ROOT / "benchmarks/faces64.zip")).to_pylist()
    assert [row["image_id"] for row in listing] == names
    assert len(names) == 64
    assert 28 <= sum("clean" not in name for name in names) <= 36
    demo = {seed for _, seed, _ in make_faces64.demo.FACES}
    assert all(seed > FITTED_BELOW and seed not in demo for seed, _ in planned)
    for row in listing:
        assert decode(read_bytes(row["uri"]), row["image_id"], ImageConfig()).shape == (128, 128, 3)


def test_listings_of_all_kinds_are_measured(tmp_path):
    command = [sys.executable, "-m", "benchmarks.listing", "--images", "300"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    ran = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    head, rule, *rows = ran.stdout.splitlines()
    assert head == "| 300 images in | seconds | CPU seconds | peak memory |"
    assert rule.count("|") == head.count("|")
    found = [re.fullmatch(r"\| (.+) \| \d+\.\d \| \d+\.\d \| (\d\.\d\d) GB \|", row) for row in rows]
    assert all(found), rows
    assert [row[1] for row in found] == [
        "a folder with 1,000 subfolders",
        "one zip",
        "100 WebDataset tars with labels",
        "20 Parquet files",
    ]
    assert all(0 < float(row[2]) < 1 for row in found)
    assert not list(tmp_path.iterdir())


def test_operators_of_a_step_are_counted_and_a_stack_sends_few_more_than_one_image():
    """What a GPU waits for: were a stack's operators sent for each of its images, they would be twice as many."""
    search, one, stack, results = counts(32, 2, "demo").values()
    assert 0 < search < one < stack < 1.5 * one
    assert one < results < 10 * one  # with each tensor by itself: more than 20 times


def test_matrix_work_is_told_by_its_kernels_names_and_is_no_optimiser():
    matrix = ["aten::mkldnn_convolution", "aten::addmm", "sm90_xmma_fprop_implicit_gemm_tf32f32", "cutlass__5x_cudnn"]
    other = ["multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "convertTensor_kernel", "aten::leaky_relu"]
    assert [name for name in matrix + other if is_matrix_work(name)] == matrix


def test_a_gpu_s_time_by_its_kernels_of_which_some_run_beside_others():
    gemm, copy, adam = Kernel("gemm", 0.0, 2.0), Kernel("memcpy", 1.0, 3.0), Kernel("adam", 6.0, 6.5)
    assert busy_seconds([adam, copy, gemm, Kernel("gemm", 1.5, 2.5)]) == 3.5
    search, tuning = stage_of([gemm, copy], 4.0, 2), stage_of([adam, gemm], 8.0, 1)
    assert (search.seconds, search.busy, search.times) == (2.0, 1.5, {"gemm": 1.0, "memcpy": 1.0})
    found = shares([search, tuning])
    assert found == {"matrix": 0.3, "busy": 0.4, "kernels": [("gemm", 0.3), ("memcpy", 0.1), ("adam", 0.05)]}


def test_a_gpu_of_which_nothing_is_seen_is_not_taken_for_one_that_does_nothing():
    for stages in ([stage_of([], 1.0, 1)], [stage_of([Kernel("gemm", 0.0, 1.0)], 1.0, 1), stage_of([], 1.0, 1)]):
        found = shares(stages)
        assert math.isnan(found["matrix"]) and math.isnan(found["busy"])
    assert shares([Stage(2.0, math.nan, {"aten::addmm": 1.0})])["matrix"] == 0.5  # of a CPU


def test_operators_of_a_cpu_are_seen_and_none_of_them_is_a_gpu_s():
    a = torch.randn(100, 100)
    found = profiled(lambda: (a @ a).relu(), torch.device("cpu"), 2)
    assert math.isnan(found.busy)
    assert 0 < found.times["aten::mm"] < found.seconds
    with torch.profiler.profile() as profile:
        a @ a
    assert kernels_of(profile) == []


def side(count=3, **values):
    """What a side says of images, each with a curve; drifts and the like as given."""
    row = {"steps": 92, "seconds": 20.0, "lpips": 0.004, "psnr": 30.0, "drift_wr": 0.016, "drift_wz": 0.008}
    row |= {"bytes": 1_000_000, "curve": [(1.0, 0.3), (20.0, 0.004)]} | values
    rows = [row | {"image_id": f"{i}.png", "seconds": row["seconds"] + i} for i in range(count)]
    return {"rows": rows, "peak": 2e9, "fp32_bytes": 50_000_000}


def arguments(folder, **changes):
    given = {"output": folder, "device": "cpu", "generator": "pocket", "images": "demo", "limit": None}
    return argparse.Namespace(**given | changes)


def test_sides_become_a_table_of_medians_a_plot_and_their_rows(tmp_path):
    sides = {PAPER: side(seconds=200.0, steps=800), "engine, fast, fp32": side() | {"matrix": 0.77}}
    for i in range(6):  # more than there are colours
        sides[f"engine, {i}"] = side(lpips=0.005 + i / 1000)
    text = write(sides, arguments(tmp_path))
    machine, _, head, rule, *rows = text.splitlines()
    assert machine.startswith(f"{len(os.sched_getaffinity(0))} cores") and machine.endswith("medians of 3 images")
    assert rule.count("|") == head.count("|")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == list(sides)
    plain, fast = (dict(zip((c.strip() for c in head.strip("|").split("|")), row, strict=True)) for row in cells[:2])
    assert (plain["times"], plain["matrix work"]) == ("1.0 x", "")
    assert (fast["s per image"], fast["times"], fast["matrix work"]) == ("21.0", "9.6 x", "77%")
    assert (fast["MB per image"], fast["share of fp32"], fast["peak GB"]) == ("1.00", "2.0%", "2.00")
    assert not {"at once", "GPU busy", "of a part"} & plain.keys()  # of a GPU only
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(sides))
    assert Image.open(tmp_path / "bench.png").width > 800


def test_the_table_says_how_many_a_gpu_searched_and_tuned_together(tmp_path):
    sides = {PAPER: side(), "engine": side() | {"at_once": 8, "stack": 4}, "alone": side() | {"at_once": 1, "stack": 1}}
    _, _, head, _, *rows = write(sides, arguments(tmp_path)).splitlines()
    assert head.endswith("| at once |")
    assert [row.split("|")[-2].strip() for row in rows] == ["", "8, 4", ""]


def test_what_a_gpu_does_is_told_with_its_largest_kernels(tmp_path):
    name = "void cutlass::Kernel<a | b>" + 200 * "x"
    seen = {"matrix": math.nan, "busy": 0.9, "part_busy": 0.55, "kernels": [(name, 0.31), ("copy", 0.02)]}
    text = write(
        {"engine, fp32": side() | seen, "engine, half": side() | {"busy": math.nan, "kernels": []}}, arguments(tmp_path)
    )
    table, kernels = text.split("\n\n")[1:]
    head, _, first, second = table.splitlines()
    assert [c.strip() for c in head.split("|")][-4:-1] == ["matrix work", "GPU busy", "of a part"]
    assert [c.strip() for c in first.split("|")][-4:-1] == ["", "90%", "55%"]
    assert [c.strip() for c in second.split("|")][-4:-1] == ["", "", ""]
    head, _, first, second = kernels.splitlines()
    assert head.startswith("| engine, fp32: kernels |") and second == "| copy | 2.0% |"
    assert first.startswith("| void cutlass::Kernel<a   b>xxx") and first.endswith("x | 31.0% |") and len(first) < 110


@pytest.mark.parametrize(("at_once", "stack", "count"), [(1, 1, 3), (8, 4, 8), (2, 1, 4), (1, 3, 3), (2, 2, 4)])
def test_a_few_images_fill_what_a_gpu_draws_together(tiny_generator, at_once, stack, count):
    targets = [Target(f"{i}.png", f"{i}.png", torch.full((3, 32, 32), float(i))) for i in range(3)]
    made = Engine(tiny_generator, configure("demo"))
    made.at_once, made.stack = at_once, stack
    found = filled(targets, made)
    assert len({t.image_id for t in found}) == len({t.group for t in found}) == len(found) == count
    assert found[:3] == targets
    assert [float(t.image[0, 0, 0]) for t in found] == [float(i % 3) for i in range(count)]


def test_an_engine_of_few_steps_works_as_the_one_that_it_was_made_of(tiny_generator):
    made = Engine(tiny_generator, configure("demo", {"pivot.w_samples": 100, "precision": "half"}))
    few = made.with_steps(2, 3)
    assert (few.config.pivot.steps, few.config.tuning.steps) == (2, 3)
    assert few.statistics is made.statistics and few.bases is made.bases and few.judge is made.judge
    whole = {"pivot": made.config.pivot, "tuning": made.config.tuning}
    assert few.config.model_copy(update=whole) == made.config
    assert made.config.pivot.steps > 2
    (inversion, _) = few.invert([Target("0.png", "0.png", torch.zeros(3, 32, 32))])
    assert (inversion.pivot_steps, inversion.tuning_steps) == (2, 3)


def test_a_plain_loop_is_kept_only_beside_its_own_generator_and_machine(tmp_path):
    here = arguments(tmp_path)
    with pytest.raises(ValueError, match=r"bench\.json does not exist, .*; leave out --again"):
        kept_from(tmp_path / "bench.json", here)
    sides = {PAPER: side() | {"about": about(here)}}
    write(sides, here)
    assert kept_from(tmp_path / "bench.json", here)["rows"] == json.loads(json.dumps(sides[PAPER]["rows"]))
    with pytest.raises(ValueError, match=r"is of pocket; demo; .* and not of mobile-ffhq; demo; .*; leave out --again"):
        kept_from(tmp_path / "bench.json", arguments(tmp_path, generator="mobile-ffhq"))
    with pytest.raises(ValueError, match="not of pocket; the first 2 of demo; "):
        kept_from(tmp_path / "bench.json", arguments(tmp_path, limit=2))
    table = write({"engine, fast, fp32": side(), "engine, demo, fp32": side()}, here)
    assert " x |" not in table  # times what?
    with pytest.raises(ValueError, match="has no plain loop to keep"):
        kept_from(tmp_path / "bench.json", here)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({small.ENGINE: {"seconds": 15.0}}, "with the same steps the engine does 0.68 times"),
        ({small.FAST: {"seconds": 48.0}}, "preset fast does 4.8 times"),
        ({small.ENGINE: {"lpips": 0.3}}, "ends at 1.50 times the plain loop's LPIPS"),
        ({small.FAST: {"lpips": 0.009}}, "preset fast ends at LPIPS 0.0090; at most 0.008 expected"),
        ({small.FAST: {"lpips": float("nan")}}, "preset fast ends at LPIPS nan"),
        ({small.FAST: {"drift_wz": 0.021}}, "preset fast ends at drift w_z 0.0210"),
        ({small.FAST: {"bytes": 2_000_000}}, "preset fast ends at share of fp32 0.0400"),
    ],
)
def test_what_fails_the_small_benchmark(changed, says):
    """Two images: 10 and 11 s where nothing else is said."""
    usual = {small.PLAIN: {"seconds": 10.0, "lpips": 0.2}, small.ENGINE: {"seconds": 9.0, "lpips": 0.2}, small.FAST: {}}
    sides = {name: side(2, **values | changed.get(name, {})) for name, values in usual.items()}
    found = small.losses(summary(sides))
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_a_step_that_fails_is_a_row_that_says_why():
    def fails():
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    rows = timed({"fails": (fails, 1), "works": (lambda: None, 2)}, "cpu", 1)
    assert rows["fails"] == "operation not permitted when stream is capturing"
    assert rows["works"] >= 0


def test_a_way_that_ends_its_process_is_a_row_that_says_why():
    args = argparse.Namespace(generator="none.pkl", device="cpu", rounds=1)
    ((row, why),) = in_a_process(args, "--as-graph", MAIN[2]).items()
    assert row == f"--as-graph {MAIN[2]}"
    assert why.startswith("error: ") and "none.pkl" in why


TABLE = """
import pathlib, subprocess, sys, time
print("| way | ms |\\n| --- | ---: |\\n| one | 1.0 |", flush=True)
pathlib.Path(sys.argv[1]).mkdir()
pathlib.Path(sys.argv[1], "bench.md").write_text("| side |\\n| --- |\\n| first |")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(float(sys.argv[2]))
child.kill()
"""


def ended(process: int) -> bool:
    """Also where nobody has asked for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def test_parts_of_what_is_measured_on_a_gpu_end_alone_and_the_page_tells_of_all(tmp_path):
    parts = [
        Part("whole", "a table", ("-c", TABLE, "{output}", "0"), 60),
        Part("slow", "too slow", ("-c", TABLE, "{output}", "60"), 8),
        Part("broken", "an error", ("-c", "raise SystemExit('error: no such generator')"), 60),
        Part("last", "of the product", ("-c", "import pti_core; print(pti_core.__name__)"), 60),
    ]
    page = run_all(parts, 600, tmp_path / "out").read_text()
    sections = {text.split(":")[0]: text for text in page.split("\n## ")[1:]}
    assert list(sections) == ["whole", "slow", "broken", "last"]
    table = "\n\n| way | ms |\n| --- | ---: |\n| one | 1.0 |\n\n    child "
    assert table in sections["whole"] and "FAILED" not in sections["whole"]
    assert "STOPPED after its 8 s" in sections["slow"] and "| first |" in sections["slow"]
    assert table in sections["slow"]
    assert "FAILED (status 1)" in sections["broken"] and "    error: no such generator" in sections["broken"]
    assert "    pti_core" in sections["last"]
    child = re.search(r"child (\d+)", sections["slow"])[1]
    for _ in range(100):
        if ended(int(child)):
            break
        time.sleep(0.1)
    assert ended(int(child))
    assert "no time left" in run_all(parts, 1, tmp_path / "again").read_text()


def test_all_of_the_product_can_be_imported_and_the_machine_is_told():
    lines = list(gpu.machine())
    assert lines[1].startswith("torch 2.")
    assert not [line for line in lines if "cannot be imported" in line]
