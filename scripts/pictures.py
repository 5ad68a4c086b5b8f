"""Make the pictures of the documentation from a run of the demo set, its edits and its alpha study.

    make demo && .venv/bin/pti edit out/demo && .venv/bin/pti alpha-study out/demo --limit 8
    .venv/bin/python scripts/pictures.py out/demo
    .venv/bin/python scripts/pictures.py out/mobile --as mobile-ffhq --lines 0 2    # the contact sheet alone

What is not there is left out, with a line that says so. The picture of the report's page needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from flows.errors import one_sentence
from pti_core.alpha.report import DRIFT, NEARNESS
from pti_core.alpha.shards import strip_name
from pti_core.runs import find_run

DOCS = Path(__file__).parents[1] / "docs/pictures"
EDITS_HEIGHT = 928  # the first lines of the sheet
HEAD, FOOT = 42, 8  # of a contact sheet, above and below its lines
WIDTH = 1400
STRIP_OF = "02-tiger-paint.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def contact_sheet(report: Path) -> Image.Image:
    """The run's own, whole."""
    return Image.open(report / "contact_sheet.png").convert("RGB")


def lines_of(sheet: Image.Image, lines: Sequence[int], total: int) -> Image.Image:
    """Some of a contact sheet's lines below its headings."""
    height = (sheet.height - HEAD - FOOT) // total
    made = Image.new("RGB", (sheet.width, HEAD + height * len(lines) + FOOT), "white")
    made.paste(sheet.crop((0, 0, sheet.width, HEAD)), (0, 0))
    for i, line in enumerate(lines):
        top = HEAD + height * line
        made.paste(sheet.crop((0, top, sheet.width, top + height)), (0, HEAD + height * i))
    return made


def edits(report: Path) -> Image.Image:
    """The first lines of the sheet of edits."""
    sheet = Image.open(report / "edits.png").convert("RGB")
    return sheet.crop((0, 0, sheet.width, min(sheet.height, EDITS_HEIGHT)))


def alpha(report: Path) -> Image.Image:
    """Both plots side by side, and one image's strips below."""
    folder = report / "alpha"
    plots = [Image.open(folder / name).convert("RGB") for name in (NEARNESS, DRIFT)]
    strips = Image.open(folder / strip_name(STRIP_OF)).convert("RGB")
    plots = [
        plot.resize((WIDTH // 2, plot.height * WIDTH // 2 // plot.width), Image.Resampling.LANCZOS) for plot in plots
    ]
    strips = strips.resize((WIDTH, strips.height * WIDTH // strips.width), Image.Resampling.LANCZOS)
    top = max(plot.height for plot in plots)
    made = Image.new("RGB", (WIDTH, top + strips.height), "white")
    for x, plot in zip((0, WIDTH // 2), plots, strict=True):
        made.paste(plot, (x, 0))
    made.paste(strips, (0, top))
    return made


def page(report: Path) -> Image.Image:
    """The grid of the report's page, its slider moved."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = started.new_page(viewport={"width": WIDTH, "height": 1140}, color_scheme="light")
        tab.goto((report / "index.html").resolve().as_uri())
        tab.evaluate("document.querySelector('#images').scrollIntoView()")
        tab.locator("#strength").evaluate("e => { e.value = e.max * 0.8; e.dispatchEvent(new Event('input')) }")
        tab.wait_for_selector("#grid .tile.edit")
        tab.wait_for_timeout(500)
        shot = tab.screenshot()
        started.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


PICTURES: dict[str, Callable[[Path], Image.Image]] = {
    "contact_sheet.jpg": contact_sheet,
    "edits.jpg": edits,
    "alpha.jpg": alpha,
    "report.jpg": page,
}


def main() -> None:
    """Parse the arguments; make each picture that the run has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", default="out/demo", help="a local folder with a run")
    parser.add_argument("--run", help="default: the newest")
    parser.add_argument("--as", dest="name", help="make NAME-all.jpg of the contact sheet, and nothing else")
    parser.add_argument("--lines", type=int, nargs="+", help="and NAME.jpg of these lines of it, from 0")
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args()
    run = find_run(args.root, args.run)
    report = Path(args.root) / "runs" / run.name / "report"
    pictures = PICTURES
    if args.name:
        pictures = {f"{args.name}-all.jpg": contact_sheet}
        if args.lines:
            some = lambda report: lines_of(contact_sheet(report), args.lines, run.manifest.rows)  # noqa: E731
            pictures[f"{args.name}.jpg"] = some
    for name, make in pictures.items():
        try:
            picture = make(report)
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        picture.save(args.out / name, quality=88)
        print(f"{args.out / name}  {picture.width} x {picture.height}")


if __name__ == "__main__":
    with one_sentence():
        main()
