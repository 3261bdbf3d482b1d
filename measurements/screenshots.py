"""The screenshots of docs/report.md and docs/arena.md, made from one run: light and dark, at 1280 and 400 pixels.

    python measurements/screenshots.py RUN [--to docs/figures]

They show the report as it would be written now, and the arena of a copy of the run, so that the run is left as it is.
Chromium is needed (`apt-get install chromium`). The pictures have 256 colours, so that they stay small.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from sppo.report import page as report

CHROMIUM = "/usr/bin/chromium"
SCREENS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 400)]
TALLEST = 1400
"""What is taller is shown by its upper part."""
PARTS = {"top": "main > article > :not(section)", "responses": ".browser", "training": "#run1-training"}
"""The parts of the report by the name of their screenshot, as selectors; each part reaches from the first to the last."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--to", type=Path, default=Path("docs/figures"))
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        work = Path(name)
        report.write([given.run], work / "report.html")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with arena(given.run, work / given.run.resolve().name) as address:
            for scheme, width in SCREENS:
                size = {"width": width, "height": 900}
                context = browser.new_context(viewport=size, color_scheme=scheme)
                shown = context.new_page()
                shown.goto((work / "report.html").as_uri())
                shown.wait_for_selector(".detail h4")
                shown.select_option("select[name=order]", "best")
                shown.click(".browser .prompts button >> nth=0")  # a prompt with a best and a worst response
                shown.evaluate("scrollTo(0, 0)")
                for part, selector in PARTS.items():
                    save(shown, selector, given.to / f"report-{part}-{scheme}-{width}.png")
                shown.goto(address)
                shown.wait_for_selector("body[data-ready=true]")
                save(shown, "body", given.to / f"arena-{scheme}-{width}.png")
                context.close()
        browser.close()


@contextmanager
def arena(run: Path, copy: Path) -> Iterator[str]:
    """Serves the arena of a copy of the run without its policies, and yields the address."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("policy", "checkpoint*", "arena"))
    for policy in run.glob("iter-*/policy"):
        (copy / policy.relative_to(run)).symlink_to(policy.resolve())
    command = [sys.executable, "-m", "sppo", "arena", str(copy), "--no-oracle", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
    finally:
        process.terminate()
        process.wait()


def save(shown: Page, selector: str, path: Path) -> None:
    """Saves what lies between the first and the last element of a selector, over the whole width of the page."""
    boxes = [element.bounding_box() for element in shown.locator(selector).all()]
    tops = [box["y"] for box in boxes if box is not None]
    bottoms = [box["y"] + box["height"] for box in boxes if box is not None]
    top = min(tops) - 8
    width = shown.evaluate("innerWidth")
    height = min(max(bottoms) + 8 - top, TALLEST)
    taken = shown.screenshot(
        full_page=True, clip={"x": 0, "y": max(top, 0), "width": width, "height": height}
    )
    image = with_few_colours(Image.open(io.BytesIO(taken)).convert("RGB"))
    image.save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height} pixels, {path.stat().st_size / 1000:.0f} kB")


def with_few_colours(image: Image.Image) -> Image.Image:
    """The image in its 256 most frequent colours, among which those of thin lines still are."""
    counted: Any = image.getcolors(image.width * image.height)  # there are no more colours than pixels
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for _, colour in sorted(counted)[-256:] for channel in colour])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
