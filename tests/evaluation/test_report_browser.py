"""The report in a real browser: figures, console, a phone's width, dark mode, print."""

import numpy as np
import pytest
from synthetic_evaluation import write_evaluation

from sssd_hf.evaluation.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """(number of images in it, path) of a report of two classes and of one with hostile names."""
    folder = tmp_path_factory.mktemp("reports")
    names = ["<img src=x onerror=alert(1)>", "b" * 120, "$x_1$ & co", "ok"]
    written = []
    for number, options in enumerate(({}, {"num_classes": 4, "names": names, "grouped": False})):
        evaluation = write_evaluation(folder / str(number), **options)
        figures = len(list((evaluation / "figures").glob("*.png"))) + 2  # curves, reconstructions
        written.append((figures, write_report(evaluation)))
    return written


def opened(browser, path, width, **options):
    """A page, and what it said in the console or asked of the network."""
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on(
        "request",
        lambda request: (
            request.url.startswith("data:")
            or request.url == path.as_uri()
            or said.append(request.url)
        ),
    )
    page.goto(path.as_uri())
    return page, said


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", [0, 1])
def test_all_figures_are_decoded_and_nothing_is_said(browser, reports, which, width):
    count, path = reports[which]
    page, said = opened(browser, path, width)
    widths = page.eval_on_selector_all("img", "images => images.map(i => i.naturalWidth)")
    assert len(widths) == count
    assert min(widths) > 0
    assert all(page.eval_on_selector_all("img", "images => images.map(i => i.alt)"))
    assert said == []
    page.close()


@pytest.mark.parametrize("which", [0, 1])
def test_a_phone_does_not_scroll_sideways(browser, reports, which):
    page, _ = opened(browser, reports[which][1], 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # what is wider has its own scroll bar: no other element reaches out of the page
    outside = page.evaluate(
        """[...document.querySelectorAll("body *")].filter(e =>
            !e.closest(".scroll, .picture") && e.getBoundingClientRect().right > 390.5
        ).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    page.close()


def contrast(page, selector, background):
    """WCAG's ratio of an element's letters to `background`, a selector too."""

    def luminance(rgb):
        channels = np.array(rgb) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def colour(where, name):
        text = page.eval_on_selector(where, f"e => getComputedStyle(e).{name}")
        return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]

    pair = (luminance(colour(selector, "color")), luminance(colour(background, "backgroundColor")))
    return (max(pair) + 0.05) / (min(pair) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_can_be_read_in_light_and_dark(browser, reports, scheme):
    page, _ = opened(browser, reports[0][1], 1280, color_scheme=scheme)
    assert contrast(page, "body", "body") > 7
    for selector in (".sub", ".note", "nav a", "figcaption"):
        assert contrast(page, selector, "body") > 4.5
    assert contrast(page, ".notice", ".notice") > 7
    page.close()


def test_it_prints(browser, reports):
    page, _ = opened(browser, reports[0][1], 1280)
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") > 3
    page.emulate_media(media="print")
    assert not page.is_visible("nav")
    # A4 less its margins is about 210 - 28 mm wide and 297 - 32 mm high: figures fit on a page
    page.set_viewport_size({"width": int((210 - 28) / 25.4 * 96), "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= int((210 - 28) / 25.4 * 96)
    heights = page.eval_on_selector_all(
        "figure", "figures => figures.map(f => f.getBoundingClientRect().height)"
    )
    assert max(heights) < (297 - 32) / 25.4 * 96
    page.close()
