"""`pti run`: a data set from the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from flows import options
from flows.lines import line
from pti_core.defaults import DEFAULT_GENERATOR, SHARD_SIZE

if TYPE_CHECKING:
    from flows.console import ProgressView
    from pti_core.runs import Run

console = Console()


class RunCommand(TyperCommand):
    """Says what to do where a shell has put the files that match a pattern in its place."""

    allow_extra_args = True  # they are refused below

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a second data set."""
        more = super().parse_args(ctx, args)
        if more:
            shown = more[0] if len(more) == 1 else f"{more[0]} and {len(more) - 1} more"
            ctx.fail(f"Got unexpected extra argument(s) ({shown}); quote a pattern: 'faces/*.png'")
        return more


class Preset(StrEnum):
    """How much work an image is worth."""

    demo = "demo"
    fast = "fast"
    paper = "paper"
    noop = "noop"


class Mode(StrEnum):
    """Who gets a generator."""

    single = "single"
    multi = "multi"


@contextmanager
def without_overwrite(overwrite: bool) -> Iterator[None]:
    """What fails once the work has begun says that the same command goes on: with --overwrite it would begin anew."""
    try:
        yield
    except RuntimeError as error:
        if not overwrite:
            raise
        raise RuntimeError(f"{error}; without --overwrite, which would do all of it once more") from error


def run(
    dataset: Annotated[
        str, typer.Argument(help="Folder, glob, archive, Parquet or one file (any fsspec URL), or 'demo'.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Where the tables go: a folder or any fsspec URL.")],
    generator: Annotated[str, typer.Option(help="Built-in name, path or URL of a checkpoint.")] = DEFAULT_GENERATOR,
    preset: Annotated[Preset, typer.Option(help="Steps and weights of the method; noop does nothing.")] = Preset.fast,
    mode: Annotated[Mode, typer.Option(help="A generator for each image, or one for each group.")] = Mode.single,
    group_by: Annotated[
        str | None, typer.Option(help="Groups of mode multi: folder (default), column:NAME, regex:PATTERN or count:N.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images; makes a run of its own.")] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Add new and changed images to the run.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do all of it again; this deletes the run's results, edits and studies.",
        ),
    ] = False,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Try again what failed for a passing reason.")
    ] = False,
    max_rejects: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="End early where more than this share of the images is rejected, e.g. 0.2."),
    ] = None,
    convert: Annotated[
        bool, typer.Option("--convert", help="Accept grey, palette, CMYK, 16-bit, transparent.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Of the random numbers of images; each has its own, by this and its image_id.")
    ] = 0,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images in a shard, of a new run or of what is added.")
    ] = SHARD_SIZE,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only part I (0 to N-1) of N: for N processes or machines that share OUTPUT, as a Slurm array.",
        ),
    ] = None,
    shards_per_task: options.ShardsPerTask = 1,
    runner: options.Runner = options.RunnerKind.threads,
    address: options.Address = None,
    workers: options.Workers = None,
    resource: options.Resource = None,
    credentials: options.Credentials = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting, e.g. tuning.steps=100.")
    ] = None,
) -> None:
    """Invert a data set: pivots, weight deltas, metrics and locality as Parquet tables under OUTPUT.

    Run the same command again to finish what is missing.
    """
    from flows.console import ProgressView, show_summary
    from pti_core.storage.share import others_left, share_of

    share = share_of(part, "overwrite" if overwrite else "resume")
    if extend and overwrite:
        raise ValueError("--extend and --overwrite: choose one, to add to the run or to do all of it again")
    settings = dict(options.parse_setting("--set", text) for text in setting or [])
    resources = options.resources_of(resource)
    options.check_runner(runner.value, address, resources)
    with ProgressView(console) as view:
        from pti_core.freezing.freeze import freeze
        from pti_core.presets import configure
        from pti_core.status import others_at_work
        from tasks.credentials import use_credentials

        use_credentials(credentials)
        overrides = {"mode": mode.value, "seed": seed, "image.convert": convert, **settings}
        existing: Any = "overwrite" if overwrite else "extend" if extend else "resume"

        def ready() -> None:
            """What cannot work here, as a server that does not answer, must not leave a run: it would be the newest."""
            from flows.reachable import check_reachable
            from pti_core.machine.device import best_device
            from pti_core.machine.parallel import available_cores

            if runner is options.RunnerKind.threads:
                best_device()
                available_cores()
            check_reachable(runner.value, workers, address, resources)

        # All that can go wrong is found here, in seconds, before a server or a worker is started.
        config = configure(preset.value, overrides)
        frozen = freeze(
            dataset,
            output,
            generator,
            config,
            limit,
            shard_size,
            existing,
            group_by,
            ready=ready,
            alone=share.whole,
        )
        for remark in frozen.remarks:
            view.note(remark)
        pending, done, _ = frozen.to_do(retry_rejects, share)
        if others := others_at_work(frozen.store, frozen.name, pending):
            view.note(others)
        if pending:
            view.say("starting Prefect")
            from flows.pti import pti
            from flows.stopping import stop_at_once
            from tasks.progress import listen

            view.expect(frozen.manifest.images_of(share), done)
            again = "the same command without --overwrite" if overwrite else "the same command"
            with listen(view), stop_at_once(view.say_last, again), without_overwrite(overwrite):
                summary = pti(
                    dataset=dataset,
                    output=output,
                    generator=generator,
                    preset=preset.value,
                    mode=mode.value,
                    group_by=group_by,
                    limit=limit,
                    retry_rejects=retry_rejects,
                    max_rejects=max_rejects,
                    convert=convert,
                    seed=seed,
                    shard_size=shard_size,
                    shards_per_task=shards_per_task,
                    runner=runner.value,
                    address=address,
                    workers=workers,
                    resources=resources,
                    credentials=credentials,
                    part=part,
                    settings=settings,
                )
        elif left := 0 if share.whole else len(frozen.to_do().shards):
            summary = {"run": frozen.name, "left": left}
        else:
            summary = _published(frozen, view)
        alone = len(frozen.store.runs()) == 1
    if "left" in summary:
        line(console, others_left(summary["run"], share, summary["left"]))
    else:
        show_summary(console, summary, output, alone)


def _published(run: Run, view: ProgressView) -> dict[str, Any]:
    """The summary of a run whose images are all done; its pictures are drawn where they are missing."""
    from pti_core.report import publish
    from pti_core.shard.shard_progress import drawing

    begun = False

    def on_drawing(what: str, done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            view.say("all images are done; the report is left")
        begun = True
        view(drawing(what, done, total))

    summary = publish(run, on_drawing)
    if not begun:
        view.say("everything is done already")
    return summary
