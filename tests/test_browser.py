"""The page of a run as a reader meets it, in a browser without a screen."""

import contextlib
import io
import re
import shutil

import pytest
from absl.testing import flagsaver
from playwright.sync_api import Error, sync_playwright

from experiments import main
from experiments.cli import command_line

pytestmark = pytest.mark.long

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
CONTRAST = 4.5  # of text and ground, by WCAG level AA
RUNS = {
    "one start": ("--ratios=2,3",),
    "seeds": ("--ratios=2", "--seeds=3"),
    "without flow": ("--ratios=2,3", "--noflow"),
    "diverged": ("--ratios=1000", "--noflow", "--step_size=20", "--widths=6,6,6"),
}
every_run = pytest.mark.parametrize("path", RUNS, indirect=True)
# Of every text that is seen: how much it contrasts with what lies behind it.
CONTRASTS = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, look = getComputedStyle(element);
    const svg = element.closest("svg");
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    const colour = parse(svg ? look.fill : look.color);
    const [low, high] = [light(colour), light(ground(element))].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), walker.currentNode.textContent.trim()]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    program = next((path for path in map(shutil.which, NAMES) if path), None)
    if program is None:
        pytest.skip(f"no browser is installed, looked for {', '.join(NAMES)}")
    with sync_playwright() as player:
        try:  # as root Chromium has no sandbox
            started = player.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"{program} does not start: {error}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(request, tmp_path_factory, flag_definitions):
    folder = tmp_path_factory.mktemp("page") / "run"
    sizes = ("--dataset=digits", "--examples=60", "--iterations=40", "--step_size=0.05")
    arguments = (*sizes, "--widths=6", *RUNS[getattr(request, "param", "one start")])
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()):
        main.main(command_line.parse_flags(["main", *arguments, f"--output_dir={folder}"]))
    return folder / "report.html"


@pytest.fixture
def visit(browser, path):
    """Opens the page; in the end nothing may have gone wrong, and nothing been fetched."""
    contexts, trouble, requests = [], [], []

    def open_page(size=DESKTOP, **options):
        context = browser.new_context(viewport=size, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("requestfailed", lambda request: trouble.append(request.url))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html.drawn")
        page.wait_for_function(
            "[...document.querySelectorAll('.plot')].every((each) => each.querySelector('.xtick'))"
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def curves(page):
    """Of every plot, how many curves have a line, marks or an area that were drawn."""
    seen = ".js-line[d*=M], .point, .js-fill"
    return page.evaluate(
        """(seen) => [...document.querySelectorAll('.plot')].map((plot) => [...plot
          .querySelectorAll('.trace')].filter((each) => each.querySelector(seen)).length)""",
        seen,
    )


@every_run
def test_figures_are_drawn(visit):
    page = visit()
    drawn = curves(page)
    assert len(drawn) == page.locator("figure").count() >= 4
    assert all(drawn)
    assert page.locator("h1").inner_text()
    assert page.locator("html").get_attribute("lang") == "en"
    for image in page.locator("img").all():
        assert image.get_attribute("alt")
    assert not page.locator("#printed").get_attribute("open")
    page.locator("summary").click()
    assert page.locator("img").evaluate("(image) => image.complete && image.naturalWidth > 500")


def test_values_are_read_off_by_hovering(visit):
    page = visit()
    page.locator(".plot .nsewdrag").first.hover()
    page.wait_for_selector(".plot .hoverlayer .legend text, .plot .hoverlayer .hovertext text")
    texts = page.locator(".plot").first.locator(".hoverlayer text").all_text_contents()
    # A run and its loss, a number of several digits.
    assert any(re.search(r"η.*: \d\.\d{3}", text) for text in texts), texts


def test_zoom_and_back(visit):
    page = visit()
    area = page.locator(".plot .nsewdrag").first
    area.scroll_into_view_if_needed()
    reach = "() => document.querySelector('.plot').layout.xaxis.range.map(Number)"
    before = page.evaluate(reach)
    box = area.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    page.mouse.up()
    page.wait_for_function(f"({reach})()[0] !== {before[0]}")
    low, high = page.evaluate(reach)
    width = before[1] - before[0]
    # A pixel or two of some 300.
    assert low == pytest.approx(before[0] + 0.3 * width, abs=0.01 * width)
    assert high == pytest.approx(before[0] + 0.6 * width, abs=0.01 * width)
    back = f"({reach})()[0] === {before[0]}"
    for _ in range(5):  # on a busy machine two clicks may be too far apart to be one
        area.dblclick()
        with contextlib.suppress(Error):
            page.wait_for_function(back, timeout=5_000)
            break
    assert page.evaluate(back)


def test_runs_are_hidden_and_shown(visit):
    page = visit()
    button = page.locator(".names button").first
    name = button.get_attribute("data-group")
    hidden = "(name) => [...document.querySelectorAll('.plot')].flatMap((plot) => plot.data)"
    hidden += ".filter((trace) => trace.legendgroup === name).every((trace) => !trace.visible)"
    assert not page.evaluate(hidden, name)
    before = sum(curves(page))
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(hidden, name)
    assert sum(curves(page)) < before
    button.press("Enter")
    assert sum(curves(page)) == before


@every_run
def test_a_phone_shows_it_without_scrolling_sideways(visit):
    page = visit(PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    outside = """[...document.querySelectorAll('body *')]
      .filter((each) => !each.closest('.scroll, svg') && each.getBoundingClientRect().right > 375.5)
      .map((each) => each.outerHTML.slice(0, 90))"""
    assert page.evaluate(outside) == []
    boxes = page.locator(".scroll")
    assert any(box.evaluate("(box) => box.scrollWidth > box.clientWidth") for box in boxes.all())
    assert all(curves(page))


def test_a_finger_scrolls_the_page(visit):
    page = visit(PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.querySelector('.plot')._fullLayout.dragmode") is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_seen(visit, scheme):
    page = visit(color_scheme=scheme)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 50
    assert [each for each in found if each[0] < CONTRAST] == []


def test_darkness_changes_page_and_figures(visit):
    page = visit(color_scheme="light")
    looks = """() => [getComputedStyle(document.body).backgroundColor,
      getComputedStyle(document.querySelector('.plot .xtick text')).fill,
      getComputedStyle(document.querySelector('.plot .js-line')).stroke]"""
    light = page.evaluate(looks)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"({looks})()[2] !== '{light[2]}'")
    assert all(a != b for a, b in zip(light, page.evaluate(looks), strict=True))


def test_without_scripts_the_printed_figure_is_there(browser, path):
    context = browser.new_context(viewport=DESKTOP, java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript .alarm").is_visible()
    page.locator("summary").click()
    assert page.locator("img").is_visible()
    assert page.locator(".plot").first.is_hidden()
    context.close()
