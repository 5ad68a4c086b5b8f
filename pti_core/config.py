"""The whole configuration of a run: frozen models that refuse unknown keys, presets, and a digest.

Every number of the method is here, with its unit and its source, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

PAPER_NUM_WS = 18
"""The layers of the generator of the paper: its alpha is a norm over all of them (see `locality.radius_of_alpha`)."""

LARGEST_ALPHA = 1e6
"""Far beyond any use: w_z is about 60 away."""

Preset = Literal["demo", "fast", "paper", "noop"]


class Frozen(BaseModel):
    """Base of all configuration: immutable, unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take it for 1."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        given = value if isinstance(value, list | tuple) else [value]
        if {int, float} & {wanted, *get_args(wanted)} and any(isinstance(one, bool) for one in given):
            raise PydanticCustomError("no_number", "a number expected")
        return value


class ImageConfig(Frozen):
    """How files become targets."""

    convert: bool = Field(
        False, description="Convert grey, palette, CMYK, 16-bit and transparent images to RGB instead of refusing them."
    )
    fit: Literal["crop", "refuse"] = Field(
        "crop", description="What to do with images that are not square: cut out the central square, or refuse them."
    )
    max_megapixels: float = Field(
        100.0, gt=0, description="Millions of pixels; larger images are refused before they are decoded."
    )


class PivotConfig(Frozen):
    """The search for the pivot, equation 1 of the paper (the optimiser is the projector of StyleGAN2, appendix D)."""

    start: Literal["auto", "w_avg", "encoder"] = Field(
        "auto", description="Where the search starts: the generator's encoder where there is one (auto), or w_avg."
    )
    space: Literal["w", "w+"] = Field("w", description="One w for all layers (keeps edits working), or one a layer.")
    steps: int = Field(450, ge=1, description="Optimisation steps of the search, the same for every image.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate of w: about how far Adam moves each entry in a step.")
    noise_lr: float = Field(0.1, gt=0, description="Peak learning rate of the noise maps, which have variance 1.")
    lr_rampup: float = Field(0.05, ge=0, le=1, description="Share of the steps with a rising learning rate (linear).")
    lr_rampdown: float = Field(0.25, ge=0, le=1, description="Share of the steps with a falling one (cosine).")
    w_noise: float = Field(
        0.05, ge=0, description="Exploration: standard deviation of noise added to w, at first, in units of w_std."
    )
    w_noise_ramp: float = Field(
        0.75, gt=0, le=1, description="Share of the steps until exploration has ended; it falls quadratically."
    )
    noise_weight: float = Field(1e5, ge=0, description="lambda_n, weight of the noise maps' autocorrelation.")
    optimise_noise: bool = Field(
        True,
        description="Optimise the noise maps along with w; otherwise they stay as noise_init gives them, with mean 0 "
        "and variance 1.",
    )
    noise_init: Literal["const", "random"] = Field(
        "const", description="Start of the noise maps: the generator's own, or N(0, 1) by the image's seed."
    )
    mse_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the MSE (of values in [-1, 1]) beside LPIPS, which counts once; 0 in the paper.",
    )
    max_resolution: int = Field(
        256, ge=32, description="Pixels along a side; larger images are reduced to this for LPIPS and MSE (area)."
    )
    w_samples: int = Field(
        10_000, ge=2, description="Mapped samples that give w_avg and w_std, and tuning.basis `inputs` its directions."
    )


class LocalityConfig(Frozen):
    """The locality regularisation, equations 4 and 5."""

    enabled: bool = Field(True, description="Regularise at all; without, nothing holds the rest of W but tuning.pull.")
    weight: float = Field(0.1, ge=0, description="lambda_R, weight of the regularisation beside the loss of tuning.")
    alpha: float = Field(
        30.0,
        gt=0,
        le=LARGEST_ALPHA,
        description="Distance of w_r from the pivot, in the paper's unit: sqrt(18) times that in W.",
    )
    lpips_weight: float = Field(
        1.0, ge=0, description="Weight, within the regularisation, of LPIPS between old and new picture of w_r."
    )
    mse_weight: float = Field(
        1.0, ge=0, description="lambda_L2_R, weight there of the MSE between the two, of values in [-1, 1]."
    )
    samples: int = Field(1, ge=1, description="Points w_r for a pivot and step.")
    interval: int = Field(1, ge=1, description="Regularise at every n-th step, with n times the weight.")


class TuningConfig(Frozen):
    """Pivotal tuning, equations 2 and 3."""

    steps: int = Field(350, ge=1, description="At most this many optimisation steps; see stop_lpips.")
    lr: float = Field(
        3e-4,
        gt=0,
        description="Peak learning rate of the weights: about how far Adam moves each in a step, in the weights' own "
        "unit; with basis `inputs`, how far along each direction.",
    )
    lr_rampup: float = Field(
        0.0, ge=0, le=1, description="Share of the steps with a rising rate (linear); 0 in the paper."
    )
    lr_rampdown: float = Field(
        0.0, ge=0, le=1, description="Share of the steps with a falling rate (cosine); 0 in the paper."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay, in a step, of the mean of gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's decay, in a step, of the mean of their squares.")
    pull: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the way back to the old weights after each step, less as the rate falls; with basis "
        "`inputs` larger along the directions that the inputs vary more along.",
    )
    basis: Literal["weights", "inputs"] = Field(
        "weights",
        description="What Adam scales: single weights, or the directions that a layer's inputs vary along.",
    )
    from_resolution: int = Field(
        4, ge=4, description="Pixels along a side; layers that work on fewer stay as they are. 4 tunes all layers."
    )
    lpips_weight: float = Field(1.0, ge=0, description="Weight of LPIPS between target and picture.")
    mse_weight: float = Field(
        1.0, ge=0, description="lambda_L2, weight of the MSE between the two, of values in [-1, 1], at full resolution."
    )
    stop_lpips: float = Field(
        0.06, ge=0, description="An image is done when its LPIPS is at most this; a rate that falls, falls then."
    )
    max_resolution: int = Field(
        1024,
        ge=32,
        description="Pixels along a side; larger images are reduced to this for LPIPS (area), in locality too.",
    )


class MeasureConfig(Frozen):
    """What the locality table holds for every image."""

    alphas: tuple[float, ...] = Field(
        (15.0, 30.0, 60.0),
        description="Distances from the pivot at which old and new generator are compared on the way to each w_z, in "
        "the paper's unit, each above 0.",
    )
    z_samples: int = Field(2, ge=0, description="Samples w_z for an image; 0 leaves its locality unmeasured.")


class RunConfig(Frozen):
    """All that decides a run's results, apart from the images and the generator's weights."""

    preset: Preset = Field("fast", description="What gives every setting its value first; `--preset` chooses it.")
    engine: Literal["pti", "noop"] = Field(
        "pti", description="`noop` does nothing: the cost of a run without the method."
    )
    mode: Literal["single", "multi"] = Field("single", description="A generator for each image, or one a group.")
    seed: int = Field(0, description="Of the random numbers of images: each has its own, by this and its image_id.")
    net: Literal["alex"] = Field("alex", description="Net of LPIPS, in losses and in tables.")
    precision: Literal["auto", "fp32", "half", "bf16"] = Field(
        "fp32",
        description="Of drawing in pivot and tuning; weights, measures and tables are float32. `half`: a StyleGAN2's "
        "top layers in fp16 on a GPU, in bf16 on a CPU; a MobileStyleGAN in bf16. `bf16`: bf16 on a GPU too. `auto`: "
        "`half` for a MobileStyleGAN on a CPU with instructions for it, else `fp32`. On such a CPU LPIPS in the losses "
        "is in half precision too, unless `fp32`.",
    )
    codec: Literal["adaptive", "sparse", "svd", "int4", "int8", "fp16"] = Field(
        "adaptive",
        description="How weight deltas are stored, smallest first: `adaptive` as coarsely as each image's picture "
        "allows (LPIPS within 0.0005 and PSNR within 0.1 dB of the tuned one), the others each tensor to a fixed "
        "precision. See docs/deltas.md.",
    )
    batch: int = Field(
        8,
        ge=1,
        description="Images in a part of a shard, written together. On a GPU they are searched together too: try 64 "
        "with a small generator. A CPU of more cores than this works on several shards at once, but in mode `multi`.",
    )
    image: ImageConfig = ImageConfig()
    pivot: PivotConfig = PivotConfig()
    tuning: TuningConfig = TuningConfig()
    locality: LocalityConfig = LocalityConfig()
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 < a <= LARGEST_ALPHA for a in self.measure.alphas):
            raise ValueError(f"measure.alphas {list(self.measure.alphas)}: numbers above 0, up to 1e6, expected")
        return self

    def owner(self, image_id: str, group: str) -> str:
        """Whose weight delta is an image's: its own, or its group's in mode "multi"."""
        return group if self.mode == "multi" else image_id

    def digest(self, **more: Any) -> str:
        """SHA-256 (hex) of all that decides results, and of `more` (the generator's SHA-256, say).

        The batch size is left out: it changes time and memory, not what is asked for.
        """
        content = self.model_dump(mode="json", exclude={"batch"}) | more
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
