"""The evaluation set: what is in the repository is what its script plans, and no face that anything was fitted to."""

from pathlib import Path

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
