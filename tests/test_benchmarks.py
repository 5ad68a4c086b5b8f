"""The evaluation set: what is in the repository is what its script plans, and no face that anything was fitted to.

And the benchmark of listings: a row for each kind of data set, nothing left behind.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.operators import counts
from benchmarks.side import is_matrix_work
from pti_core.config import ImageConfig
from pti_core.datasets import read_bytes, scan
from pti_core.images import decode

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
    command = [sys.executable, "benchmarks/listing.py", "--images", "300"]
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
    search, one, stack = counts(32, 2, "demo").values()
    assert 0 < search < one < stack < 1.5 * one


def test_matrix_work_is_told_by_its_kernels_names_and_is_no_optimiser():
    matrix = ["aten::mkldnn_convolution", "aten::addmm", "sm90_xmma_fprop_implicit_gemm_tf32f32", "cutlass__5x_cudnn"]
    other = ["multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "convertTensor_kernel", "aten::leaky_relu"]
    assert [name for name in matrix + other if is_matrix_work(name)] == matrix
