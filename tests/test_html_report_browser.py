"""The report's page in a real browser, opened from disk; skipped where no Chromium is installed."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image
from reported import HOSTILE, finished, parsed, reported

from benchmarks.report_page import BROWSERS, page_of
from pti_core.html_report import page, write_page
from pti_core.html_report.figures import gather

pytestmark = [pytest.mark.slow, pytest.mark.computing]


@pytest.fixture(scope="module")
def made(pictures, tiny_checkpoint, tmp_path_factory):
    return reported(pictures, tiny_checkpoint, tmp_path_factory.mktemp("report"))


def shown_order(tab):
    return tab.locator("#grid .name").all_text_contents()


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser, made):
    """The page as opened from disk, in a tab that may not reach any network; it must log no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, offline=True)
    opened = context.new_page()
    errors = []
    opened.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("requestfailed", lambda request: errors.append(request.url))
    opened.goto(made.path.as_uri())
    opened.evaluate("document.querySelector('#images').scrollIntoView()")
    opened.wait_for_selector("#grid li:first-child .tile")
    yield opened
    assert opened.evaluate("window.hacked") is None
    assert errors == []
    context.close()


def test_the_grid_shows_and_sorts_by_any_measure(tab, made):
    figures = gather(made.run).images
    tab.set_viewport_size({"width": 1200, "height": 4000})  # all cards are filled

    def wait_for(order):
        tab.wait_for_function("n => document.querySelectorAll('#grid .name').length === n", arg=len(order))
        assert shown_order(tab) == order

    wait_for(list(figures["stored.lpips"].sort_values(ascending=False).index))
    tab.select_option("#measure", "stored.psnr")
    wait_for(list(figures["stored.psnr"].sort_values().index))
    tab.click("#order")
    wait_for(list(figures["stored.psnr"].sort_values(ascending=False).index))
    assert tab.locator("#order").text_content() == "best first"
    tab.select_option("#measure", "drift")
    wait_for(list(figures["drift"].sort_values().index))
    tab.fill("#find", "hacked")
    wait_for([HOSTILE])
    assert tab.locator("#count").text_content() == "1 of 9"


def test_the_slider_moves_the_edits_and_nothing_else(tab):
    edits, shots = tab.locator("#grid .tile.edit"), tab.locator("#grid .tile.shot")
    assert edits.count() >= 4
    before = edits.nth(0).screenshot(), edits.nth(3).screenshot(), shots.nth(0).screenshot()
    assert len(set(Image.open(io.BytesIO(before[0])).convert("RGB").getdata())) > 50  # a picture, not a colour
    tab.locator("#strength").fill("0")
    assert tab.locator("#sigma").text_content() == "−2 σ"
    after = edits.nth(0).screenshot(), edits.nth(3).screenshot(), shots.nth(0).screenshot()
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, True, False]


def test_a_click_shows_whole_strips_and_the_arrows_go_on(tab, made):
    _, data = parsed(made.path)
    first, second = shown_order(tab)[:2]
    tab.locator("#grid .tile").first.click()
    assert tab.locator("dialog h3").text_content() == first
    assert tab.locator("dialog .strip .tile").count() == 4 * len(data["layout"]["strengths"])
    tab.keyboard.press("ArrowRight")
    assert tab.locator("dialog h3").text_content() == second
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()


def test_light_and_dark_wide_and_narrow(tab):
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.emulate_media(color_scheme="light")
    light = tab.evaluate(colour)
    tab.click("#theme")
    dark = tab.evaluate(colour)
    assert light != dark
    tab.click("#theme")
    tab.emulate_media(color_scheme="dark")
    tab.click("#theme")
    assert tab.evaluate(colour) == dark
    tab.set_viewport_size({"width": 360, "height": 700})
    assert tab.evaluate("document.documentElement.scrollWidth") == 360


def test_pictures_beside_the_page_show_when_opened_from_disk(browser, made, monkeypatch):
    monkeypatch.setattr(page, "EMBEDDED", 5)
    write_page(made.run)
    try:
        opened = browser.new_page()
        loaded = []
        opened.on("requestfinished", lambda request: loaded.append(request.url))
        opened.goto(made.path.as_uri())
        opened.evaluate("document.querySelector('#images').scrollIntoView()")
        opened.wait_for_selector("#grid .tile.shot")
        shot = Image.open(io.BytesIO(opened.locator("#grid .tile.shot").first.screenshot())).convert("RGB")
        assert len(set(shot.getdata())) > 50
        assert any(url.endswith(".webp") for url in loaded)
        opened.close()
    finally:
        monkeypatch.undo()
        write_page(made.run)


def test_of_2000_images_only_those_near_the_window_have_pictures(browser, dataset, tmp_path, tiny_checkpoint):
    report = page_of(finished(dataset(4), tmp_path / "out", tiny_checkpoint), 2000)
    assert (report.images, report.drawn) == (2000, 2000)
    _, data = parsed(Path(report.path))

    def order(measure, worst):  # of equal figures the first of the page
        values = data["values"][measure]
        return [data["ids"][i] for i in sorted(range(2000), key=lambda i: (worst * values[i], i))]

    tab = browser.new_page(viewport={"width": 1200, "height": 1000}, offline=True)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))

    def near(first):  # once the card `first` is filled: all filled ones are its neighbours, and few
        tab.wait_for_selector(f"#grid .head:has(+ .four) .name:text-is('{first}')")
        names = shown_order(tab)
        assert 8 <= len(names) <= 24  # two a row, the window and 700 pixels around it
        assert tab.locator("#grid li").count() == 2000
        return names

    tab.goto(f"{Path(report.path).as_uri()}#images")
    worst = order("stored.lpips", -1)
    names = near(worst[0])
    assert names == worst[: len(names)]
    tab.select_option("#measure", "stored.psnr")
    worst = order("stored.psnr", 1)
    names = near(worst[0])
    assert names == worst[: len(names)]
    tab.locator("#grid li").last.scroll_into_view_if_needed()
    names = near(worst[-1])
    assert names == worst[-len(names) :]
    last = Image.open(io.BytesIO(tab.locator("#grid li:last-child .tile.shot").first.screenshot())).convert("RGB")
    assert len(set(last.getdata())) > 50
    assert 0 < sum(url.endswith(".webp") for url in asked) < 100
    tab.close()
