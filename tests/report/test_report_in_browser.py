"""The page in a real browser, from a file: what only a script and a layout engine can show."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec.report.page import page
from specdec.report.plots import figures
from tests.support.swept import EVIL, gathered, make_text, write_sweep

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    missing = "chromedriver" if BROWSER else " or ".join(BROWSERS)
    pytest.skip(f"no {missing} on this machine", allow_module_level=True)

WIDTHS = {"desktop": 1280, "phone": 390}


class Browser:
    """A headless Chromium, in which every test opens the page anew."""

    def __init__(self, driver: Any, file: Path):
        self.driver = driver
        self.file = file

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def open(self, width: int = 1280, scheme: str = "light") -> "Browser":
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(self.file.as_uri())
        # On a busy machine the page may be there before what its script has filled in.
        filled = "return document.querySelector('#arm option') !== null"
        deadline = time.monotonic() + 20
        while not self.run(filled):
            assert time.monotonic() < deadline, "the script has not run"
            time.sleep(0.05)
        return self

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def hover(self, element: Any) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        webdriver.ActionChains(self.driver).move_to_element(element).perform()

    def tip(self) -> str:
        return self.one("#tip").text if self.one("#tip").is_displayed() else ""

    def column(self, number: int) -> list[str]:
        """Return a column of the first table as it stands: numbers whole, without intervals."""
        return self.run(
            """const rows = [...document.querySelector("table.arms").tBodies[0].rows];
            const cells = rows.filter((row) => !row.hidden).map((row) => row.cells[arguments[0]]);
            return cells.map((cell) => cell.dataset.v ?? cell.textContent.trim());""",
            number - 1,
        )

    def background(self) -> str:
        return self.run("return getComputedStyle(document.body).backgroundColor")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    with webdriver.Chrome(options=options, service=service) as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("sweep"), gammas=(1, 2, 4))
    collection, results = gathered(folder)
    texts = [make_text("ngram"), make_text("ngram", "second"), make_text("other", turn=1)]
    path = folder / "report.html"
    plots = figures(collection, results)
    path.write_text(page(collection, results, plots, texts), encoding="utf-8")
    return path


@pytest.fixture
def browser(driver: Any, file: Path) -> Iterator[Browser]:
    yield Browser(driver, file)
    driver.execute_script("localStorage.clear()")


def test_it_opens_from_a_file_without_a_complaint(browser: Browser) -> None:
    browser.open()
    assert browser.run("return location.protocol") == "file:"
    assert browser.run("return document.title").startswith(browser.file.parent.name)
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    for select in browser.all("details > summary"):
        browser.run("arguments[0].parentElement.open = true", select)
    assert browser.driver.get_log("browser") == []
    browser.run("console.error('heard')")
    assert len(browser.driver.get_log("browser")) == 1, "the log is not listened to"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_only_tables_scroll_sideways(browser: Browser, width: int) -> None:
    browser.open(width)
    for each in browser.all("details"):
        browser.run("arguments[0].open = true", each)
    size = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scrolled, seen = browser.run(size)
    assert scrolled == seen
    assert seen <= width
    drawings = browser.run(
        "return [...document.querySelectorAll('svg')].map((each) => each.clientWidth)"
    )
    assert drawings
    assert all(0 < each <= width for each in drawings)
    frames = browser.all(".scroll")
    wide = [each for each in frames if each.get_property("scrollWidth") > each.size["width"]]
    assert wide or width > 500, "nothing here is too wide: the test would not see it"


def test_a_narrow_screen_breaks_no_word(browser: Browser) -> None:
    browser.open(WIDTHS["phone"])
    range_ = """const range = document.createRange();
        range.selectNodeContents(arguments[0]);
        return new Set([...range.getClientRects()].map((box) => box.top)).size"""
    assert browser.run(range_, browser.one("#theme")) == 1
    names = [each for each in browser.all("table.arms:first-of-type tbody th") if each.text]
    assert names
    for each in names:
        words = each.text.split()
        assert browser.run(range_, each) <= len(words), each.text


def test_titles_sort(browser: Browser) -> None:
    browser.open()
    heads = browser.all("table.arms:first-of-type thead th")[:12]
    tau = heads[2]
    assert tau.get_attribute("aria-sort") == "descending"
    before = [float(x) for x in browser.column(3)]
    assert before == sorted(before, reverse=True)
    tau.find_element("css selector", "button").click()
    assert [float(x) for x in browser.column(3)] == sorted(before)
    assert tau.get_attribute("aria-sort") == "ascending"
    browser.run("arguments[0].focus()", heads[0].find_element("css selector", "button"))
    browser.press(webdriver.Keys.ENTER)
    assert browser.column(1) == sorted(browser.column(1))
    assert [head.get_attribute("aria-sort") for head in heads] == ["ascending", *["none"] * 11]
    browser.press(webdriver.Keys.ENTER)
    assert browser.column(1) == sorted(browser.column(1), reverse=True)


def test_what_has_no_number_is_sorted_last(browser: Browser) -> None:
    browser.open()
    button = browser.all("table.arms:first-of-type thead th:nth-child(5) button")[0]
    for _ in range(2):
        button.click()
        column = browser.column(5)
        assert column[-1] == "-", "only the baseline has no acceptance rate"
        assert "-" not in column[:-1]


def test_the_box_filters_arms(browser: Browser) -> None:
    browser.open()
    assert len(browser.column(1)) == 7
    browser.one("#filter").send_keys("Gamma=2 NGRAM")
    assert browser.column(1) == ["ngram, rejection, gamma=2"]
    assert browser.one("#filtered").text == "1 of 7"
    browser.one("#filter").send_keys(webdriver.Keys.CONTROL, "a")
    browser.one("#filter").send_keys(webdriver.Keys.DELETE)
    assert len(browser.column(1)) == 7
    assert browser.one("#filtered").text == ""


def test_a_title_explains_itself(browser: Browser) -> None:
    browser.open()
    assert browser.tip() == ""
    browser.hover(browser.all("table.arms:first-of-type thead th:nth-child(3) button")[0])
    assert browser.tip().startswith("Emitted tokens / verifier calls (tau)")
    browser.press(webdriver.Keys.ESCAPE)
    assert browser.tip() == ""


def test_a_token_explains_itself(browser: Browser) -> None:
    browser.open()
    tokens = browser.all("#tokens .token")
    assert len(tokens) == 4
    browser.hover(tokens[1])
    said = browser.tip()
    assert "accepted: a draft token that the rule let pass" in said
    assert "depth 2" in said
    assert said.count(EVIL) == 2, "the token and one of two candidates"
    assert "\u201c one\u201d" in said
    browser.hover(tokens[2])
    assert "bonus" in browser.tip()
    assert "no other candidates" in browser.tip()
    box, seen = browser.one("#tip").rect, browser.run("return [innerWidth, innerHeight]")
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= seen[0]


def test_tokens_are_reached_by_keyboard(browser: Browser) -> None:
    browser.open()
    assert [each.get_attribute("tabindex") for each in browser.all("#tokens .token")] == [
        *("0", "-1", "-1", "-1")
    ]
    browser.run("arguments[0].focus()", browser.all("#tokens .token")[0])
    assert "depth 1" in browser.tip()
    for _ in range(3):
        browser.press(webdriver.Keys.ARROW_RIGHT)
    assert "recovered" in browser.tip()
    assert "\u201c\u21e5\u201d" in browser.tip(), "a tab is shown"
    browser.press(webdriver.Keys.ARROW_RIGHT)
    assert "recovered" in browser.tip(), "there is nothing beyond the last"
    browser.press(webdriver.Keys.ARROW_LEFT)
    assert "bonus" in browser.tip()


def test_tokens_are_text_and_whitespace_can_be_seen(browser: Browser) -> None:
    browser.open()
    tokens = browser.all("#tokens .token")
    shown = [each.get_property("textContent") for each in tokens]
    assert shown == ["def", EVIL, "\u21b5\n", "\u00b7\u00b7\u00b7"]
    classes = [each.get_attribute("class") for each in tokens]
    assert classes == [
        *("token accepted d1 step", "token accepted d2", "token bonus", "token recovered step")
    ]
    lines = {
        browser.run("return getComputedStyle(arguments[0]).textDecorationStyle", each)
        for each in (tokens[0], tokens[2], tokens[3])
    }
    assert len(lines) == 3, "colour is the only cue"
    assert browser.one("#asked").get_property("textContent") == f"first: {EVIL}"
    assert browser.one("#about").text == "4 tokens in 2 steps: 2.00 per step"
    assert browser.run("return document.title") != "owned"
    assert browser.run("return document.images.length") == 0


def test_arms_and_prompts_are_chosen(browser: Browser) -> None:
    browser.open()
    assert [each.text for each in browser.all("#arm option")] == ["ngram", "other"]
    assert [each.text for each in browser.all("#prompt option")] == ["first", "second"]
    browser.all("#prompt option")[1].click()
    assert browser.one("#asked").text.startswith("second: ")
    browser.all("#arm option")[1].click()
    assert [each.text for each in browser.all("#prompt option")] == ["first, turn 2"]
    assert browser.one("#asked").text.startswith("first: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_follow_the_system_until_chosen(browser: Browser, scheme: str) -> None:
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
    other = "dark" if scheme == "light" else "light"
    browser.open(scheme=scheme)
    toggle = browser.one("#theme")
    assert browser.background() == grounds[scheme]
    assert toggle.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    ink = "return getComputedStyle(document.querySelector('svg text')).fill"
    before = browser.run(ink)
    toggle.click()
    assert browser.background() == grounds[other]
    assert browser.run(ink) != before, "plots keep the other theme's ink"
    assert toggle.get_attribute("aria-pressed") == str(other == "dark").lower()
    browser.open(scheme=scheme)
    assert browser.background() == grounds[other], "the choice is forgotten"
