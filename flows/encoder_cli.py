"""`pti train-encoder`: an encoder for a generator, from the terminal."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flows import options
from flows.lines import line

console = Console()


def train_encoder(
    generator: options.GeneratorRef,
    samples: Annotated[int, typer.Option(min=16, help="Samples of the generator to train on.")] = 6000,
    drawing_steps: Annotated[int, typer.Option(min=0, help="Steps through the generator, after those in W.")] = 400,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train also where there is an encoder.")] = False,
    folder: Annotated[str | None, typer.Option(help="Where to write it instead of the user's cache folder.")] = None,
    credentials: options.Credentials = None,
) -> None:
    """Train an encoder from image to w on a generator's own samples: runs then begin the search nearer to the pivot."""
    from flows.console import ProgressView

    with ProgressView(console, "generator") as view:
        from pti_core.encoder.files import find_encoder
        from pti_core.encoder.making import check, make
        from pti_core.generators.checkpoints import load_generator
        from pti_core.words import PERCENT
        from tasks.credentials import use_credentials

        check(generator, folder)  # what is wrong is found here, before Prefect is started: it stores what it is given
        use_credentials(credentials)
        sha256 = load_generator(generator).sha256
        if not overwrite and not folder and find_encoder(sha256):
            made = make(generator, samples, drawing_steps)
        else:
            view.say("starting Prefect")
            from flows.stopping import stop_at_once
            from flows.train_encoder import train_encoder as flow
            from tasks.progress import listen

            view.expect(100, 0, PERCENT)

            def stopped(_: str) -> None:
                view.say_last("stopped; nothing was written, the same command begins anew")

            with listen(view), stop_at_once(stopped):
                made = flow(
                    generator=generator,
                    samples=samples,
                    drawing_steps=drawing_steps,
                    seed=seed,
                    overwrite=overwrite,
                    folder=folder,
                    credentials=credentials,
                )
    figures = made["held_out"]
    if figures:  # the packaged encoder has none
        words = f"LPIPS {figures['lpips_w_avg']:.3f} at w_avg, {figures['lpips_encoder']:.3f} at the encoder's w"
        line(console, f"{figures['samples']} held-out samples: {words}")
    if made["remark"]:
        line(console, made["remark"], "yellow")
    if made["path"] is None:
        return
    there = "" if made["trained"] else " (was there already; --overwrite trains it anew)"
    line(console, f"encoder {made['path']}{there}")
