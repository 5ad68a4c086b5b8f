"""`pti alpha-study`: the study from the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from flows import options
from flows.lines import line

console = Console()


def alpha_study(
    root: options.Root,
    run: options.RunName = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images of the run.")] = 12,
    image: Annotated[list[str] | None, typer.Option(help="Only this image_id, whatever the limit. Repeatable.")] = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="In the paper's unit, 0 for the pivot itself, or 'off' for tuning without the regulariser; "
            "0, 10, 15, 20, 30, 45, 60, 90 and off if left out. Repeatable."
        ),
    ] = None,
    z_samples: Annotated[int, typer.Option(min=1, help="Samples z for an image.")] = 2,
    shards_per_task: options.ShardsPerTask = 1,
    runner: options.Runner = options.RunnerKind.threads,
    address: options.Address = None,
    workers: options.Workers = None,
    resource: options.Resource = None,
    credentials: options.Credentials = None,
) -> None:
    """Tune images with several alphas and without the regulariser: what does the distance do? Tables, plots, a page.

    Run the same command again to finish what is missing.
    """
    from flows.console import ProgressView

    resources = options.resources_of(resource)
    options.check_runner(runner.value, address, resources)
    with ProgressView(console, "the run") as view:
        from dataclasses import asdict

        from pti_core.alpha.plans import plan
        from pti_core.alpha.report import publish
        from pti_core.alpha.study import ALPHAS
        from pti_core.words import counted
        from tasks.credentials import use_credentials

        use_credentials(credentials)
        alphas = [_alpha(text) for text in alpha] if alpha else list(ALPHAS)
        # All that can go wrong is found here, in seconds, before a server or a worker is started.
        found = plan(root, run, limit, image or [], alphas, z_samples)
        total, done = found.left
        if found.pending:
            work = f"{counted(total, 'image')} x {counted(len(found.request.alphas), 'alpha')}"
            view.say(f"run {found.run.name}: {work}; starting Prefect")
            from flows.alpha_study import alpha_study as flow
            from flows.stopping import stop_at_once
            from tasks.progress import listen

            view.expect(total, done)
            with listen(view), stop_at_once(view.say_last):
                summary = flow(
                    root=root,
                    run=found.run.name,
                    limit=limit,
                    images=image or None,
                    alphas=alphas,
                    z_samples=z_samples,
                    shards_per_task=shards_per_task,
                    runner=runner.value,
                    address=address,
                    workers=workers,
                    resources=resources,
                    credentials=credentials,
                )
        else:
            view.say("everything is done already")
            summary = asdict(publish(found.run, found.images, found.request))
        for remark in summary["remarks"]:
            view.note(remark)
    _show(summary)


def _show(summary: dict[str, Any]) -> None:
    """What was found, and where to look next."""
    for sentence in summary["findings"]:
        line(console, f"- {sentence}")
    if not summary["findings"]:
        from pti_core.alpha.findings import NO_STATEMENT

        line(console, NO_STATEMENT, "yellow")
    line(console, f"\npage      {summary['page']}")
    line(console, f"findings  {summary['table']}")


def _alpha(text: str) -> Any:
    from pti_core.alpha.study import AlphaError

    try:
        return text if text == "off" else float(text)
    except ValueError:
        raise AlphaError(f"alpha {text!r}: a number or 'off' expected") from None
