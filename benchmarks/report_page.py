"""What a report's page of many images weighs, and how it feels in headless Chromium, opened from disk.

    python -m benchmarks.report_page                 # 2,000 images; --images 12 200 2000: also the sizes with fewer

The packaged faces are inverted by a few steps and repeated under other names: with figures that differ by up to a
tenth, and with pictures in files of their own, so that the browser sorts, loads and decodes as if no two were the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from flows.errors import one_sentence
from pti_core.freezing.freeze import freeze
from pti_core.html_report.figures import gather
from pti_core.html_report.page import Report, write
from pti_core.html_report.pictures import draw
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.shard.shards import invert_shard, measure_shard

FEW_STEPS = {"pivot.steps": 6, "pivot.w_samples": 300, "tuning.steps": 5, "measure.z_samples": 1}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOADS = 5  # times the page is opened
SECONDS, SPEEDS = 5, (3, 10)  # of a scroll, and the windows a second it moves by

# All is timed in the page, by its own clock. Cards show when all in the window have their pictures, these are decoded,
# and two frames have passed: the second begins after the first was drawn.
SCRIPT = """
window.frame = () => new Promise(requestAnimationFrame);
window.shown = async () => {
  let cards = [];
  while (!cards.length || !cards.every((card) => card.querySelector(".tile"))) {
    await frame();
    const boxes = [...document.querySelectorAll("#grid li")].map((card) => [card, card.getBoundingClientRect()]);
    cards = boxes.filter(([, box]) => box.bottom > 0 && box.top < innerHeight).map(([card]) => card);
  }
  const urls = cards.map((card) => card.querySelector(".tile").style.backgroundImage.slice(5, -2));
  await Promise.all(urls.map((url) => Object.assign(new Image(), { src: url }).decode()));
  await frame();
  return frame().then(() => performance.now());
};
window.sorted = async (measure) => {
  const select = document.querySelector("#measure"), start = performance.now();
  select.value = measure;
  select.dispatchEvent(new Event("change"));
  return (await shown()) - start;
};
window.scrolled = async (seconds, speed) => {
  const grid = document.querySelector("#grid"), start = await frame(), frames = [], empty = [];
  for (let last = start; last < start + 1000 * seconds && grid.getBoundingClientRect().bottom > innerHeight;) {
    const now = await frame(), card = document.elementFromPoint(innerWidth / 4, innerHeight / 2).closest("#grid li");
    frames.push(now - last);
    empty.push(card !== null && !card.querySelector(".tile"));
    scrollBy({ top: speed * innerHeight * (now - last) / 1000, behavior: "instant" });
    last = now;
  }
  return [frames, empty];
};
"""


def page_of(run: Run, count: int, one_file: bool = False) -> Report:
    """Write the run's page with `count` images in place of its own, each a copy of one of them."""
    figures = gather(run)
    shards = figures.images["shard"]
    pictures = draw(run, {shard: list(shards.index[shards == shard]) for shard in set(shards)})
    images = figures.images.iloc[np.arange(count) % len(figures.images)]
    ids = [f"{i:05d}-{name}" for i, name in enumerate(images.index)]
    # Bytes behind the end of a WebP picture are ignored; they make it another file, which no cache knows.
    sprites = {ids[i]: pictures.sprites[name] + i.to_bytes(4, "big") for i, name in enumerate(images.index)}
    images = images.assign(group=ids).set_axis(pd.Index(ids, name="image_id"))
    measured = list(figures.columns)
    images[measured] *= np.random.default_rng(0).uniform(0.9, 1.1, images[measured].shape)
    return write(run, replace(figures, images=images), replace(pictures, sprites=sprites), one_file)


def in_browser(page: Path, browser: str) -> dict[str, str]:
    """What was measured of the page, in a window of 1200 x 1000. SystemExit where it logs an error."""
    from playwright.sync_api import sync_playwright

    loads, errors = [], []
    with sync_playwright() as driver, driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as started:
        for _ in range(LOADS):
            tab = started.new_page(viewport={"width": 1200, "height": 1000}, offline=True)
            tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.add_init_script(SCRIPT)
            tab.goto(f"{page.as_uri()}#images")
            loads.append(tab.evaluate("shown()"))  # since the navigation began
        measures = tab.locator("#measure option").evaluate_all("options => options.map((option) => option.value)")
        orders = [tab.evaluate("measure => sorted(measure)", measure) for measure in measures[1:]]
        scrolls = {speed: tab.evaluate(f"scrolled({SECONDS}, {speed})") for speed in SPEEDS}
    if errors:
        raise SystemExit(f"The page logged {len(errors)} errors, the first: {errors[0]}")
    found = {
        "from opening the page to its first cards": f"{np.median(loads) / 1000:.2f} s",
        "from choosing another measure to the first cards by it": f"{np.median(orders) / 1000:.2f} s",
    }
    for speed, (frames, empty) in scrolls.items():
        half, most = np.percentile(frames, [50, 90])
        name = f"a frame of a scroll, {speed} windows a second: median, 90th percentile; empty in the middle"
        found[name] = f"{half:.0f} ms, {most:.0f} ms; {np.mean(empty):.0%}"
    return found


def main() -> None:
    """Make the pages, open the largest, print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2000])
    parser.add_argument("--one-file", action="store_true", help="all pictures in the page")
    parser.add_argument("--output", type=Path, help="a new folder, where the largest page stays")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = freeze("demo", str(args.output or temporary), "pocket-ffhq-128", configure("demo", FEW_STEPS))
        for shard in run.to_do().shards:
            inverted = invert_shard(run, shard)
            measure_shard(run, shard, inverted["files"], inverted["seconds"])
        print("| images with pictures | `index.html` | `sprites/` |\n| --- | --- | --- |")
        for count in sorted(args.images):
            report = page_of(run, count, args.one_file)
            beside = f"{report.beside / 2**20:.0f} MiB " if report.beside else ""
            print(f"| {count:,} | {report.bytes / 2**20:.1f} MiB | {beside}|")
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None or importlib.util.find_spec("playwright") is None:
            print("\nNo more is measured: Chromium or the package playwright is not installed.")
            return
        found = in_browser(Path(report.path).resolve(), browser)
        print(f"\n| {report.drawn:,} images, no errors in the console | |\n| --- | ---: |")
        for name, value in found.items():
            print(f"| {name} | {value} |")


if __name__ == "__main__":
    with one_sentence():
        main()
