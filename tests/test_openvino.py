"""MobileStyleGAN against OpenVINO running the published network itself; `pip install -e '.[openvino]'`."""

import zipfile

import numpy as np
import pytest
import torch

from pti_core.generators.checkpoints.random_face import read_random_face
from pti_core.generators.fetch import FETCHABLE, download

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return download(FETCHABLE["mobile-ffhq"].requirement, tmp_path_factory.mktemp("wheel"))


def test_ws_and_images_match_openvino(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if n.startswith("random_face/data/")])
    core = openvino.Core()

    def run(name, value):
        model = core.read_model(tmp_path / f"random_face/data/{name}.xml")
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return next(iter(compiled(value).values()))

    generator = read_random_face(wheel)
    for seed in range(2):
        z = np.random.RandomState(seed).randn(1, 512).astype("float32")
        with torch.no_grad():
            ws = generator.mapping(torch.from_numpy(z))
            image = generator.synthesis(ws)
        np.testing.assert_allclose(ws[0, 0], run("MappingNetwork", z).reshape(-1), atol=1e-4)
        # w is up to 3 and what separates the two is float32 rounding through 15 convolutions
        np.testing.assert_allclose(image, run("SynthesisNetwork", ws[:, 0].numpy()), atol=1e-4)
