"""Fit the pocket generator (FFHQ faces at 128 x 128) to samples of the full MobileStyleGAN.

    python scripts/fit_pocket.py --wheel random_face-2021.7.21.1-py3-none-any.whl --pairs 'pairs-*.parquet' --minutes 90

`pip download --no-deps random-face==2021.7.21.1` gets the wheel. Pairs are Parquet files with `seed`, `psi` and
`image` (any format that Pillow reads), made with `--sample N OUT.parquet` (the full generator, reduced 8 x 8).

The mapping and the blocks up to 64 x 64 are the full generator's. The head's style affine starts as that of the next
block's upsampling (it modulates the same features; scaled to unit style), its 1x1 kernel as the least-squares solution
in the Haar domain. Then the head alone is trained with L1, and after it the whole synthesis with L1 at several scales
(most of the squared error is low-frequency: the colours were made by the blocks that are cut off) + LPIPS. What is kept
is a moving average of the weights. Written: the asset, the held-out figures beside it as JSON, and a contact sheet
(target above, pocket generator below).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flows.errors import one_sentence
from pti_core.generators.checkpoints import load_generator, save_generator
from pti_core.generators.checkpoints.random_face import read_random_face
from pti_core.generators.mobilestylegan import MobileStyleGAN, inverse_haar
from pti_core.generators.noise import noise_maps
from pti_core.machine.malloc import keep_freed_memory
from pti_core.perceptual import load_lpips

HELD_OUT = 64  # the pairs with the lowest seeds; never trained on
W_SAMPLES = 10_000
EMA_DECAY = 0.998


def sample_z(seed: int) -> np.ndarray:
    """The latent of a pair, `[1, 512]`."""
    return np.random.RandomState(seed).randn(1, 512).astype("float32")


@torch.no_grad()
def cut(full: MobileStyleGAN) -> MobileStyleGAN:
    """The full generator without its last three blocks; the head is new."""
    pocket = MobileStyleGAN(full.channels[:5]).requires_grad_(False)
    state = {k: v for k, v in full.state_dict().items() if k in pocket.state_dict() and ".head." not in k}
    missing, unexpected = pocket.load_state_dict(state, strict=False)
    if unexpected or any(".head." not in name for name in missing):
        raise ValueError(f"the full generator lacks {missing}")
    z = torch.from_numpy(np.concatenate([sample_z(10**6 + i) for i in range(W_SAMPLES)]))
    w = torch.cat([full.mapping(part)[:, 0] for part in z.split(1000)])
    pocket.mapping.w_avg.copy_(w.mean(dim=0))
    next_up = full.synthesis.blocks[4].up
    style_rms = next_up(w[:1000]).square().mean(dim=0).sqrt()
    pocket.synthesis.head.affine.weight.copy_(next_up.weight / style_rms[:, None])
    pocket.synthesis.head.affine.bias.copy_(next_up.bias / style_rms)
    return pocket


def load_pairs(pattern: str, pocket: MobileStyleGAN) -> tuple[Tensor, Tensor]:
    """(w `[N, 512]`, images uint8 `[N, 3, 128, 128]`), lowest seed first."""
    frame = pd.concat(
        [pd.read_parquet(path) for path in sorted(Path(pattern).parent.glob(Path(pattern).name))]
    ).sort_values("seed")
    images = [np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in frame["image"]]
    z = torch.from_numpy(np.concatenate([sample_z(int(s)) for s in frame["seed"]]))
    with torch.no_grad():
        w = torch.cat([pocket.mapping(part)[:, 0] for part in z.split(1000)])
    psi = torch.from_numpy(frame["psi"].to_numpy(np.float32, copy=True))[:, None]
    return pocket.mapping.w_avg.lerp(w, psi), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def to_float(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def broadcast(w: Tensor, generator: MobileStyleGAN) -> Tensor:
    """w `[N, w_dim]` to ws `[N, num_ws, w_dim]`."""
    return w[:, None].expand(-1, generator.num_ws, -1)


def haar(x: Tensor) -> Tensor:
    """The forward transform: `[N, C, 2H, 2W]` to `[N, 4C, H, W]`, in `inverse_haar`'s order (it is orthonormal)."""
    n, c, h, w = x.shape
    basis = inverse_haar(torch.eye(4)[:, :, None, None])  # [4, 1, 2, 2]
    bands = F.conv2d(x.reshape(n * c, 1, h, w), basis, stride=2).view(n, c, 4, h // 2, w // 2)
    return torch.cat([bands[:, :, 0], bands[:, :, 1:].flatten(1, 2)], dim=1)


@torch.no_grad()
def solve_head(pocket: MobileStyleGAN, w: Tensor, images: Tensor, batch: int = 8) -> None:
    """Set the head's kernel and bias to the least-squares solution for these pairs."""
    head, synthesis = pocket.synthesis.head, pocket.synthesis
    size = pocket.channels[-1] + 1
    xx, xy = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 12, dtype=torch.float64)
    noise = noise_maps(synthesis.layers, batch, "const")
    for ws, target in zip(broadcast(w, pocket).split(batch), images.split(batch), strict=True):
        x = synthesis.features(ws, noise) * (head.affine(ws[:, -1]) * head.gain)[:, :, None, None]
        x = x.permute(0, 2, 3, 1).flatten(0, 2)
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        y = haar(to_float(target)).permute(0, 2, 3, 1).flatten(0, 2)
        xx += (x.T @ x).double()
        xy += (x.T @ y).double()
    ridge = 1e-4 * xx.diagonal().mean()
    solution = torch.linalg.solve(xx + ridge * torch.eye(size, dtype=torch.float64), xy).float()
    head.weight.copy_(solution[:-1].T[:, :, None, None])
    head.bias.copy_(solution[-1])


@torch.no_grad()
def evaluate(pocket: MobileStyleGAN, w: Tensor, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """Held-out figures (means of uint8-rounded images) and the drawn images, uint8."""
    lpips, drawn, psnr, distance = load_lpips(), [], [], []
    for ws, target in zip(broadcast(w, pocket).split(8), images.split(8), strict=True):
        image = ((pocket.synthesis(ws) + 1) * 127.5).round().clamp(0, 255).byte()
        mse = (to_float(image) - to_float(target)).square().mean(dim=(1, 2, 3))
        psnr.append(10 * (4 / mse).log10())
        distance.append(lpips(to_float(image), to_float(target)))
        drawn.append(image)
    figures = {"psnr": torch.cat(psnr).mean().item(), "lpips_alex": torch.cat(distance).mean().item()}
    return figures, torch.cat(drawn)


def contact_sheet(targets: Tensor, drawn: Tensor, path: Path, columns: int = 8, rows: int = 3) -> None:
    """Rows of targets with what the generator draws below each."""
    n = columns * rows
    pairs = torch.stack([targets[:n], drawn[:n]], dim=1).unflatten(0, (rows, columns))
    sheet = pairs.permute(0, 2, 4, 1, 5, 3).reshape(rows * 2 * 128, columns * 128, 3)
    Image.fromarray(sheet.numpy()).save(path)


def train(
    phase: str,
    pocket: MobileStyleGAN,
    w: Tensor,
    images: Tensor,
    held_out: tuple[Tensor, Tensor],
    args: argparse.Namespace,
) -> int:
    """One phase: the head alone for `args.head_minutes`, or the whole synthesis for `args.minutes`.

    The learning rate follows the clock (warm-up, then cosine), so that a slow or busy machine ends in time too.
    """
    lpips, pixel_only = load_lpips(), phase == "head"
    minutes = args.head_minutes if pixel_only else args.minutes
    head = list(pocket.synthesis.head.parameters())
    inherited = [p for name, p in pocket.synthesis.named_parameters() if not name.startswith("head.")]
    # The head is new and has the colours to learn, which the blocks that were cut off made; the rest is only adjusted.
    groups = [{"params": head, "peak": args.head_lr}, {"params": inherited, "peak": args.lr}]
    parameters = head + ([] if pixel_only else inherited)
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.Adam(groups[:1] if pixel_only else groups, betas=(0.9, 0.99))
    average = AveragedModel(pocket.synthesis, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=False)
    rng, start, step, report = torch.Generator().manual_seed(args.seed), time.time(), 0, time.time()
    total, order, averages = minutes * 60, torch.empty(0, dtype=torch.long), [0.1, 0.1]
    while (progress := (time.time() - start) / total) < 1:
        if len(order) < args.batch:
            order = torch.randperm(len(w), generator=rng)
        index, order = order[: args.batch], order[args.batch :]
        for group in optimizer.param_groups:
            warm_up = min(1, (step + 1) / 100)
            group["lr"] = group["peak"] * warm_up * 0.5 * (1 + math.cos(math.pi * progress))
        target = to_float(images[index])
        drawn = pocket.synthesis(broadcast(w[index], pocket))
        l1 = pyramid_l1(drawn, target)
        perceptual = torch.zeros([]) if pixel_only else lpips(drawn, target).mean()
        optimizer.zero_grad(set_to_none=True)
        (l1 + args.lpips_weight * perceptual).backward()
        optimizer.step()
        step += 1
        average.update_parameters(pocket.synthesis)
        averages = [a + 0.01 * (v.item() - a) for a, v in zip(averages, (l1, perceptual), strict=True)]
        if time.time() - report > args.report_minutes * 60:
            report = time.time()
            averaged = with_synthesis(pocket, average.module)
            figures, drawn_held_out = evaluate(averaged, *held_out)
            contact_sheet(held_out[1], drawn_held_out, args.out / "pocket-contact-sheet.png")
            write(averaged, args, figures | {"steps": step}, "partial")
            losses = f"l1 {averages[0]:.4f} lpips {averages[1]:.4f}"
            print(f"{phase} {progress:4.0%} step {step} {losses} held out {figures}", flush=True)
    pocket.synthesis.load_state_dict(average.module.state_dict())
    for p in parameters:
        p.requires_grad_(False)
    return step


def with_synthesis(pocket: MobileStyleGAN, synthesis: torch.nn.Module) -> MobileStyleGAN:
    """A copy of `pocket` with these synthesis weights."""
    copied = copy.deepcopy(pocket).requires_grad_(False)
    copied.synthesis.load_state_dict(synthesis.state_dict())
    return copied


def pyramid_l1(drawn: Tensor, target: Tensor) -> Tensor:
    """Mean over three scales of the L1 of 1x1, 4x4 and 16x16 means."""
    difference = drawn - target
    return torch.stack([F.avg_pool2d(difference, k).abs().mean() for k in (1, 4, 16)]).mean()


def write(pocket: MobileStyleGAN, args: argparse.Namespace, figures: dict[str, float], suffix: str = "") -> None:
    """The asset in fp16, and its figures."""
    notes = {
        "origin": "distilled from MobileStyleGAN (PyPI random-face 2021.7.21.1), itself from StyleGAN2 FFHQ",
        "licence": "random-face is Apache-2.0; the weights descend from NVIDIA's FFHQ model (CC-BY-NC-SA-4.0)",
    }
    name = "pocket-ffhq-128" + (f"-{suffix}" if suffix else "")
    path = args.out / f"{name}.safetensors"
    save_generator(pocket, path, notes, dtype=torch.float16)
    wheel_sha256 = hashlib.sha256(Path(args.wheel).read_bytes()).hexdigest()
    figures = figures | {"held_out": HELD_OUT, "wheel_sha256": wheel_sha256}  # type: ignore[dict-item]
    (args.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


@torch.no_grad()
def sample_pairs(full: MobileStyleGAN, count: int, first_seed: int, path: Path) -> None:
    """Draw pairs with the full generator: 128 x 128, WebP; a third truncated at 0.7, as people sample."""
    w_avg, rows = cut(full).mapping.w_avg, []
    for seed in range(first_seed, first_seed + count):
        psi = 0.7 if seed % 3 == 0 else 1.0
        w = w_avg.lerp(full.mapping(torch.from_numpy(sample_z(seed)))[:, 0], psi)
        image = F.avg_pool2d(full.synthesis(broadcast(w, full)), 8)[0]
        buffer = io.BytesIO()
        pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(buffer, "WEBP", quality=95)
        rows.append({"seed": seed, "psi": np.float32(psi), "image": buffer.getvalue()})
    pd.DataFrame(rows).to_parquet(path)


def main() -> None:
    """Parse the arguments, then sample or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--sample", nargs=2, metavar=("N", "OUT"), help="draw N pairs instead of fitting")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--pairs", default="pairs-*.parquet")
    parser.add_argument("--out", type=Path, default=Path("out/pocket"))
    parser.add_argument("--resume", help="go on from this asset (with --head-minutes 0)")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--head-minutes", type=float, default=8)
    parser.add_argument("--report-minutes", type=float, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--head-lr", type=float, default=1e-2)
    parser.add_argument("--lpips-weight", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    full = read_random_face(args.wheel)
    if args.sample:
        sample_pairs(full, int(args.sample[0]), args.first_seed, Path(args.sample[1]))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    pocket = cut(full)
    del full
    w, images = load_pairs(args.pairs, pocket)
    held_out, w, images = (w[:HELD_OUT], images[:HELD_OUT]), w[HELD_OUT:], images[HELD_OUT:]
    if args.resume:
        pocket.load_state_dict(load_generator(args.resume).generator.state_dict())  # type: ignore[attr-defined]
    else:
        solve_head(pocket, w[:320], images[:320])
    figures, drawn = evaluate(pocket, *held_out)
    print(f"start, held out: {figures}", flush=True)
    contact_sheet(held_out[1], drawn, args.out / "pocket-contact-sheet.png")
    if args.head_minutes > 0:
        train("head", pocket, w, images, held_out, args)
    steps = train("all", pocket, w, images, held_out, args)
    figures, drawn = evaluate(pocket, *held_out)
    contact_sheet(held_out[1], drawn, args.out / "pocket-contact-sheet.png")
    write(pocket, args, figures | {"steps": steps, "pairs": len(w), "minutes": args.minutes})
    print(f"done after {steps} steps, held out: {figures}")


if __name__ == "__main__":
    with one_sentence():
        main()
