"""What the tests of the report share: a real run with bad files and a name that is markup, its page, and a parser."""

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core.freezing.freeze import freeze
from pti_core.html_report import write_page
from pti_core.presets import configure
from pti_core.shard.shards import invert_shard, measure_shard

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>.png"


def finished(data, output, checkpoint, preset="demo", **settings):
    config = configure(preset, (QUICK_SETTINGS if preset == "demo" else {}) | settings)
    run = freeze(str(data), str(output), checkpoint, config, None, 4)
    for shard in run.to_do().shards:
        inverted = invert_shard(run, shard)
        measure_shard(run, shard, inverted["files"], inverted["seconds"])
    return run


def reported(pictures, checkpoint, folder):
    """A real run of nine images, one of them with a name that is markup, and of three bad ones; and its page."""
    names = [f"{i}.png" for i in range(8)] + [HOSTILE]
    for name, picture in zip(names, pictures, strict=False):
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "data" / name)
    for name in ("a.png", "b.png", "<b>c.png"):
        (folder / "data" / name).write_text("no image")
    run = finished(folder / "data", folder / "out", checkpoint, **{"tuning.steps": 4})
    report = write_page(run)
    return SimpleNamespace(run=run, report=report, path=Path(report.path), names=names)


class Elements(HTMLParser):
    """All elements of a page, and the texts of its scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self.script = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.script = dict(attrs).get("id", "") if tag == "script" else None

    def handle_data(self, data):
        if self.script is not None:
            self.scripts[self.script] = self.scripts.get(self.script, "") + data


def parsed(path):
    elements = Elements(path.read_text())
    return elements, json.loads(elements.scripts["data"])
