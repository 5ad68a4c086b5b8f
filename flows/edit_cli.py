"""`pti edit`: edits of inverted images from the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from flows import options
from flows.lines import line

console = Console()


def edit(
    root: options.Root,
    run: options.RunName = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            "--direction",
            "-d",
            metavar="SOURCE[:layers=L][:name=N][:key=K]",
            help="pca:K, sefa:K, a file .npy .npz .pt, learned:TABLE (image_id and score), or visible (the default): "
            "the two principal components that change an image most. Layers: coarse, middle, fine, 4-7. "
            "Key: the array of a file that has several. Repeatable.",
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            "--strength",
            "-s",
            help="In standard deviations of W along the direction, not 0; -2 and 2 if left out. Repeatable.",
        ),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="Only this image_id; all if left out. Repeatable.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Write the edited images, beside the table.")] = True,
    shards_per_task: options.ShardsPerTask = 1,
    runner: options.Runner = options.RunnerKind.threads,
    address: options.Address = None,
    workers: options.Workers = None,
    resource: options.Resource = None,
    credentials: options.Credentials = None,
) -> None:
    """Edit the images of a finished run: pictures, and the table `edits` that says how well each edit still works.

    Run the same command again to finish what is missing; other directions and strengths are added.
    """
    from flows.console import ProgressView

    resources = options.resources_of(resource)
    options.check_runner(runner.value, address, resources)
    with ProgressView(console, "the run") as view:
        from dataclasses import asdict

        from pti_core.editing.plans import plan
        from pti_core.editing.report import publish
        from tasks.credentials import use_credentials

        use_credentials(credentials)
        # All that can go wrong is found here, in seconds, before a server or a worker is started.
        found = plan(root, run, direction or None, strength or None, image or None, pictures)
        for remark in found.remarks:
            view.note(remark)
        if found.pending:
            view.say("starting Prefect")
            from flows.edit import edit as flow
            from flows.stopping import stop_at_once
            from tasks.progress import listen

            view.expect(*found.left)
            with listen(view), stop_at_once(view.say_last):
                summary = flow(
                    root=root,
                    run=found.run.name,
                    directions=direction or None,
                    strengths=strength or None,
                    images=image or None,
                    pictures=pictures,
                    shards_per_task=shards_per_task,
                    runner=runner.value,
                    address=address,
                    workers=workers,
                    resources=resources,
                    credentials=credentials,
                )
        else:
            view.say("everything is done already")
            summary = asdict(publish(found.run, found.request))
        alone = len(found.run.store.runs()) == 1
    _show(summary, root.rstrip("/"), alone)


def _show(summary: dict[str, Any], root: str, alone: bool) -> None:
    """Medians, and where to look next. `alone`: the root has no other run."""
    from rich.table import Table

    from flows.console import reading
    from pti_core.words import counted
    from tasks.edit import table_of

    rows, images = table_of(summary["medians"]), counted(summary["images"], "image")
    table = Table(title=f"run {summary['run']}: edits of {images}, medians", title_justify="left")
    for heading in rows[0] if rows else ():
        table.add_column(heading, justify="left" if heading == "direction" else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    if summary["sheet"]:
        line(console, f"\nsheet     {summary['sheet']}")
        line(console, f"pictures  {root}/runs/{summary['run']}/edits/")
    line(console, f"measures  {reading(root, 'edits', summary['run'], alone)}")
