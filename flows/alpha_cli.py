"""`pti alpha-study`: the study from the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from flows import options

console = Console()


def alpha_study(
    root: options.Root,
    name: options.RunName = None,
    images: Annotated[int, typer.Option(min=1, help="The first so many images of the run.")] = 12,
    image: Annotated[list[str] | None, typer.Option(help="This image instead (its image_id); repeat for more.")] = None,
    alpha: Annotated[
        list[str] | None, typer.Option(help="An alpha in the paper's unit, or 'off'; may be repeated.")
    ] = None,
    z_samples: Annotated[int, typer.Option(min=1, help="Samples z for an image.")] = 2,
    runner: options.Runner = options.RunnerKind.threads,
    address: options.Address = None,
    workers: options.Workers = None,
    resource: options.Resource = None,
    credentials: options.Credentials = None,
) -> None:
    """Tune images with several alphas and without the regulariser: what does the distance do? Tables, plots, a page."""
    from flows.console import ProgressView
    from pti_core.alpha.shards import chosen
    from pti_core.alpha.study import AlphaError, check_alphas
    from pti_core.runs import find_run
    from tasks.credentials import use_credentials

    use_credentials(credentials)
    resources = options.resources_of(resource)

    def number(text: str) -> Any:
        try:
            return text if text == "off" else float(text)
        except ValueError:
            raise AlphaError(f"alpha {text!r}: a number or 'off' expected") from None

    alphas = [number(text) for text in alpha] if alpha else None
    if alphas:
        check_alphas(alphas)
    run = find_run(root, name)  # what is wrong is found here, before Prefect is started
    count = sum(len(ids) for ids in chosen(run, images, image or []).values())
    from flows.alpha_study import ALPHAS
    from flows.alpha_study import alpha_study as flow
    from flows.stopping import stop_at_once
    from tasks.progress import listen

    with ProgressView(console) as view:
        view.say(f"run {run.name}: {count} images x {len(alphas or ALPHAS)} alphas; starting Prefect")
        view.expect(count, 0)
        with listen(view), stop_at_once(view.say_last):
            found = flow(
                root=root,
                run=run.name,
                images=images,
                ids=image,
                alphas=alphas,
                z_samples=z_samples,
                runner=runner.value,
                address=address,
                workers=workers,
                resources=resources,
                credentials=credentials,
            )
    for sentence in found["findings"]:
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print(f"\npage  {found['page']}", highlight=False, soft_wrap=True)
