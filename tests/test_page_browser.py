"""The page in headless Chromium: what a visitor does, what the browser asks for, what a checker of accessibility finds.

Needs Chromium, and `pip install playwright axe-playwright-python`. With SCREENSHOTS=folder, pictures of the page are left there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editmgt_jax import cli, images
from editmgt_jax.pipeline.recipes import picture_hash, read_recipe

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="the page needs pip install '.[page]'")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python")
SIZE = (1024, 640)
STROKE = 100  # pixels of the screen, to both sides


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "editmgt_jax.cli", "serve", "--page", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    yield next(line.split()[-1] for line in process.stderr if line.startswith("listening on")) + "/"
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in rest


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A visitor's window, with what it asked for and complained of."""

    def __init__(self, browser, url, width=1280, scheme="light", name="page"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        self.page, self.url, self.name = context.new_page(), url, name
        self.page.set_default_timeout(120_000)
        self.errors, self.requests, self.layers = [], [], []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.on("request", self._note)
        self.page.goto(url)
        self.page.get_by_text("Edit a picture").wait_for()

    def _note(self, request):
        self.requests.append(request.url)
        if request.url.endswith("/queue/join?") and '"layers"' in (request.post_data or ""):
            self.layers = [
                layer["path"] for value in json.loads(request.post_data)["data"] if isinstance(value, dict)
                for layer in value["layers"]
            ]  # fmt: skip

    def example(self, text="remove the pizza"):
        self.page.locator("#examples button", has_text=text).click()
        self.page.get_by_role("button", name="Another picture").wait_for()
        self.page.wait_for_timeout(1500)

    def fold_settings(self, folded):
        button, seed = self.page.get_by_role("button", name="Settings"), self.page.get_by_label("Seed", exact=True)
        button.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        button.click()
        seed.wait_for(state="hidden" if folded else "visible")
        self.page.wait_for_timeout(1500)  # gradio makes the fields anew when they are unfolded

    def setting(self, label, value):
        self.page.get_by_label(label, exact=True).fill(value)
        self.page.keyboard.press("Tab")
        self.page.wait_for_timeout(1500)

    def edit(self, count=1):
        self.page.get_by_role("button", name="Edit", exact=True).click()
        self.page.locator("#history button img").nth(count - 1).wait_for()
        self.page.wait_for_timeout(1500)

    def tab(self, name):
        tab = self.page.get_by_role("tab", name=name)
        for _ in range(10):
            tab.click()
            self.page.wait_for_timeout(500)
            if tab.get_attribute("aria-selected") == "true":
                return
        raise AssertionError(f"the tab {name} does not open")

    def download(self, path):
        with self.page.expect_download() as event:
            self.page.locator("#results").get_by_role("button", name="Download", exact=True).click()
        event.value.save_as(path)

    def picture(self, state):
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=Path(folder, f"{self.name}-{state}.png"), full_page=True)

    def faults(self):
        """Of accessibility, serious or worse."""
        self.page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
        found = self.page.evaluate("axe.run()")["violations"]
        return [
            (fault["id"], node["html"]) for fault in found if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]  # fmt: skip

    def check(self, state):
        self.picture(state)
        assert self.faults() == [], state
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state

    def leave(self):
        foreign = [asked for asked in self.requests if not asked.startswith((self.url, "data:", "blob:"))]
        self.page.context.close()
        assert foreign == [] and self.errors == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_a_visitor_edits_an_example(url, browser, width, scheme):
    visit = Visit(browser, url, width, scheme, f"page-{width}-{scheme}")
    visit.page.wait_for_timeout(1500)
    visit.check("start")
    visit.page.get_by_role("button", name="Edit", exact=True).click()
    visit.page.get_by_text("there is no picture").wait_for()
    visit.page.wait_for_timeout(1500)
    visit.check("error")
    visit.example()
    visit.fold_settings(False)
    visit.setting("Steps", "3")
    visit.check("settings")
    visit.fold_settings(True)
    visit.edit()
    visit.check("result")
    visit.tab("Where")
    visit.page.get_by_label("number input for Hold threshold").fill("0.4")
    visit.page.wait_for_timeout(1500)
    visit.check("where")
    visit.tab("Steps")
    visit.page.get_by_label("number input for Step").fill("1")
    visit.page.wait_for_timeout(1500)
    visit.check("steps")
    visit.leave()


def test_the_file_repeats_the_edit(url, browser, tmp_path):
    visit = Visit(browser, url)
    visit.example("make the chick pink")
    visit.fold_settings(False)
    visit.setting("Seed", "7")
    visit.edit()
    visit.setting("Seed", "8")
    visit.edit(count=2)
    visit.download(tmp_path / "8.png")
    visit.page.locator("#history button").nth(1).click()
    visit.page.wait_for_timeout(2000)
    assert visit.page.get_by_label("Seed", exact=True).input_value() == "7"
    visit.download(tmp_path / "7.png")
    visit.leave()
    example = images.load(Path(__file__).parents[1] / "examples" / "chick.png")
    for seed in (7, 8):
        file, again = tmp_path / f"{seed}.png", tmp_path / f"again_{seed}.png"
        recipe = read_recipe(file)
        assert recipe.call["seed"] == seed and recipe.call["mask"] is None and recipe.image == picture_hash(example)
        words = ["--image", "examples/chick.png", "--from", str(file), "--output", str(again)]
        assert cli.main(["edit", *words]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(again)))


def test_a_brushed_mask_arrives_exactly(url, browser, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 10, 3), np.uint8)
    Image.fromarray(pixels.swapaxes(0, 1)).resize(SIZE, Image.Resampling.BICUBIC).save(tmp_path / "wide.png")
    visit = Visit(browser, url, name="brush")
    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_text("Click to Upload").click()
    chooser.value.set_files(tmp_path / "wide.png")
    visit.page.get_by_role("button", name="Another picture").wait_for()
    visit.page.wait_for_timeout(3000)
    canvas = visit.page.locator("canvas").first.bounding_box()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    visit.page.mouse.move(middle[0] - STROKE, middle[1])
    visit.page.mouse.down()
    visit.page.mouse.move(middle[0] + STROKE, middle[1], steps=20)
    visit.page.mouse.up()
    visit.page.wait_for_timeout(3000)
    visit.picture("brushed")
    visit.page.get_by_label("Instruction").fill("remove the pizza")
    visit.edit()
    visit.picture("result")
    (layer,) = visit.layers
    sent = np.asarray(Image.open(layer).convert("RGBA"))[..., 3] > 0
    visit.download(tmp_path / "result.png")
    visit.leave()
    mask = read_recipe(tmp_path / "result.png").call["mask"]
    assert mask.shape == SIZE[::-1]
    np.testing.assert_array_equal(mask, sent)
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    assert abs(top + bottom - (SIZE[1] - 1)) <= 2 and abs(left + right - (SIZE[0] - 1)) <= 2  # the stroke is central
    radius = (bottom - top + 1) / 2
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    along = np.clip(x, left + radius - 0.5, right - radius + 0.5)
    stroke = np.hypot(x - along, y - (SIZE[1] - 1) / 2) <= radius
    assert (mask != stroke).sum() < 0.01 * stroke.sum()
    outside = np.asarray(Image.open(tmp_path / "result.png"))[~mask]
    np.testing.assert_array_equal(outside, np.asarray(Image.open(tmp_path / "wide.png"))[~mask])
