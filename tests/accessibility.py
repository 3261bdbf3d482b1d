"""Accessibility faults of a page that is open in a browser, found by axe-core."""

import pytest

SCREENS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 400)]


def faults(page, screens=SCREENS):
    """What axe finds in light and dark, on wide and narrow screens, with every fold open, one line for each fault."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    lines = []
    for scheme, width in screens:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        lines += [
            f"{scheme}, {width} px: {found['id']}: {node['html']}: {node['failureSummary']}"
            for found in axe.run(page).response["violations"]
            for node in found["nodes"]
        ]
    return lines
