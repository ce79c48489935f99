"""The HTML page in a real Chromium: desktop and phone, light and dark, sort, filter, and the runs behind a number.

Skipped where no Chromium with its driver is installed, unless FINETUNE_BENCH_BROWSER=required.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_bench.report import Options
from finetune_bench.reports.html import Html
from tests.synthetic_store import TASKS, THIRTEEN, fail, make_store

FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "disable-dev-shm-usage",
    "no-first-run",
    "disable-sync",
    "disable-background-networking",
    "disable-component-update",
)
WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}
HOSTILE = (
    "<img src=x onerror=\"document.title='broken into'\">.csv</script><script>document.title='broken into'</script>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 13 methods with a failure, a collapse and a task whose name is an attack."""
    folder = tmp_path_factory.mktemp("page")

    def change(row: dict[str, Any]) -> None:
        if (row["method"], row["seed"]) == ("r3f", 2):
            fail(row, f"out of memory {HOSTILE}")
        elif (row["method"], row["seed"]) == ("mixout", 3):
            row["collapsed"] = "the predictions hardly vary"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, HOSTILE, TASKS["rte"])
        store = make_store(folder / "store", methods=THIRTEEN, tasks=("rte", "stsb", HOSTILE), change=change)
        [path] = Html().write(store, folder, Options())
    return path


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh Chromium whose window has the parameter's width."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        text = f"not installed: {', '.join(missing)} (on Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("FINETUNE_BENCH_BROWSER") == "required":
            pytest.fail(text)
        pytest.skip(text)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(programs["chromium"])
        for flag in FLAGS:
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        # A window can't be as narrow as a phone, an emulated screen can.
        width, height = WIDTHS[request.param]
        screen = {"width": width, "height": height, "pixelRatio": 1.0, "mobile": request.param == "phone"}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": screen})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(programs["chromedriver"])))
        try:
            yield driver
        finally:
            driver.quit()


def column(driver: Any, table: Any, index: int) -> list[str]:
    """The texts of one column's visible rows."""
    return driver.execute_script(
        "return [...arguments[0].tBodies[0].rows].filter(row => !row.hidden)"
        ".map(row => row.cells[arguments[1]].innerText)",
        table,
        index,
    )


@pytest.mark.slow
@pytest.mark.parametrize("browser", WIDTHS, indirect=True)
def test_the_page_works_in_a_browser(browser: Any, page: Path) -> None:
    """One page is opened once per width, since starting a browser takes seconds."""
    from selenium.webdriver.common.by import By

    browser.get(page.as_uri())
    check_first_screen(browser)
    check_pictures(browser)
    check_themes(browser)
    check_linked(browser)
    check_printing(browser)
    box = browser.find_element(By.CSS_SELECTOR, ".box:has([aria-label=scores])")
    table = box.find_element(By.TAG_NAME, "table")
    check_sorting(browser, table)
    check_filters(browser, box, table)
    check_runs_of_a_number(browser, table)
    # The attack is text, and nothing complained.
    assert "onerror" in browser.find_element(By.TAG_NAME, "main").text
    assert browser.title != "broken into"
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []


def click(browser: Any, element: Any) -> None:
    """Bring an element into view and click it; once more where the page was still moving and another came first."""
    from selenium.common.exceptions import ElementClickInterceptedException
    from selenium.webdriver.support.ui import WebDriverWait

    def is_clicked(_: Any) -> bool:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()
        return True

    WebDriverWait(browser, 10, ignored_exceptions=[ElementClickInterceptedException]).until(is_clicked)


def wait(browser: Any, until: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda _: until())


def check_first_screen(browser: Any) -> None:
    """The sentence, and every method's line of the one figure, are seen without scrolling, in colours of the theme."""
    lowest, height, wide = browser.execute_script(
        "const lines = document.querySelectorAll('.headline, .drawn:first-of-type tbody tr');"
        "const box = document.querySelector('.drawn').parentElement;"
        "return [Math.max(...[...lines].map(line => line.getBoundingClientRect().bottom)), innerHeight,"
        " [box.scrollWidth, box.clientWidth]]"
    )
    assert 0 < lowest <= height
    assert wide[0] <= wide[1], "the figure is wider than its place"
    drawn = "return [...document.querySelectorAll('.drawn .band')].map(band => band.getBoundingClientRect().width)"
    assert min(browser.execute_script(drawn)) > 10
    numbers = browser.execute_script(
        "return [...document.querySelectorAll('.drawn tfoot .bar text')].map(text => text.getBoundingClientRect())"
        ".filter(box => box.width).map(box => [box.left, box.right])"
    )
    assert len(numbers) >= 2
    assert all(left >= right for (_, right), (left, _) in itertools.pairwise(sorted(numbers))), "numbers overlap"


def check_pictures(browser: Any) -> None:
    """Every plot is there, and nothing is wider than the screen: tables and plots scroll inside their own boxes."""
    from selenium.webdriver.common.by import By

    pictures = browser.find_elements(By.CSS_SELECTOR, "figure .plot")
    assert len(pictures) >= 9
    assert all(picture.get_attribute("aria-label") for picture in pictures)
    smallest = browser.execute_script(
        "const texts = [...document.querySelectorAll('main > figure .plot text')];"
        "const scale = text => Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);"
        "return Math.min(...texts.map(text => scale(text) * parseFloat(getComputedStyle(text).fontSize)))"
    )
    assert smallest >= 7, "the texts of a plot are too small to read"
    width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    long_word = browser.execute_script(
        "const line = document.querySelector('.aside'); line.append('x'.repeat(300));"
        "const width = document.documentElement.scrollWidth; line.lastChild.remove(); return width"
    )
    assert long_word <= width[1]
    assert width[0] <= width[1], f"the page is {width[0]} pixels wide on a screen of {width[1]}"


def check_themes(browser: Any) -> None:
    """The button turns light to dark, and back."""
    from selenium.webdriver.common.by import By

    def paper() -> str:
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    root = browser.find_element(By.TAG_NAME, "html")
    theme, before = root.get_attribute("data-theme"), paper()
    browser.find_element(By.CSS_SELECTOR, "header .theme").click()
    assert {theme, root.get_attribute("data-theme")} == {"light", "dark"}
    assert paper() != before
    browser.find_element(By.CSS_SELECTOR, "header .theme").click()
    assert (root.get_attribute("data-theme"), paper()) == (theme, before)


def check_linked(browser: Any) -> None:
    """A mark that is pointed at says what it is, and its method stands out in all plots and tables."""
    seen = browser.execute_script(
        "const marks = [...document.querySelectorAll('[data-name=scores] [data-method=rdrop]')];"
        "const mark = marks.find(mark => mark.textContent.includes('['));"
        "mark.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, clientX: 50, clientY: 50}));"
        "const chosen = [...document.querySelectorAll('.chosen')];"
        "const other = document.querySelector('[data-name=time] [data-method=mixout]');"
        "return [document.querySelector('.tip').textContent, chosen.every(one => one.dataset.method === 'rdrop'),"
        " new Set(chosen.map(one => one.closest('figure, table'))).size, getComputedStyle(other).opacity,"
        " document.querySelector('.tip').getBoundingClientRect().top]"
    )
    assert seen[0].startswith("rdrop, ")
    assert "[" in seen[0]
    assert seen[1]
    assert seen[2] > 6
    assert float(seen[3]) < 0.5
    assert seen[4] == 66
    browser.execute_script("document.body.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))")
    assert browser.execute_script("return document.querySelectorAll('.chosen').length") == 0
    saved = browser.execute_script("return drawingOf(document.querySelector('[data-name=scores]'))")
    assert "var(" not in saved
    assert saved.startswith("<svg")


def check_printing(browser: Any) -> None:
    """A figure is printed alone, on one page of its size, and afterwards all is as before; paper is light."""
    before = browser.execute_script(
        "window.print = () => {}; const title = document.title;"
        "document.querySelector('[data-name=scores] [data-save=pdf]').click(); return title"
    )
    assert browser.title == "scores"
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
    width = browser.execute_script("return +document.querySelector('[data-name=scores] .plot').getAttribute('width')")
    [box] = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+)", pdf)
    assert abs(float(box) - 0.75 * (width + 40)) < 2
    assert browser.title == before
    browser.execute_script("root.dataset.theme = 'dark'; dispatchEvent(new Event('beforeprint'))")
    theme = "return document.documentElement.dataset.theme"
    assert browser.execute_script(theme) == "light"
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(theme) == "dark"
    browser.execute_script("paint()")


def check_sorting(browser: Any, table: Any) -> None:
    """The comparison table sorts by the mean, downwards first, then upwards."""
    from selenium.webdriver.common.by import By

    head = table.find_elements(By.TAG_NAME, "th")[1]
    for direction in ("descending", "ascending"):
        click(browser, head.find_element(By.TAG_NAME, "button"))
        assert head.get_attribute("aria-sort") == direction
        keys = browser.execute_script(
            "return [...arguments[0].tBodies[0].rows].map(row => row.cells[1].dataset.sort)", table
        )
        there = [float(key) for key in keys if key is not None]
        assert len(there) > 5
        assert there == sorted(there, reverse=direction == "descending")
        assert len(set(there)) > 3


def check_filters(browser: Any, box: Any, table: Any) -> None:
    """The filter of one table, and the filter of all."""
    from selenium.webdriver.common.by import By

    field = box.find_element(By.CSS_SELECTOR, "input")
    field.send_keys("rdrop")
    shown = column(browser, table, 0)
    assert 0 < len(shown) < len(THIRTEEN)
    assert all("rdrop" in name for name in shown)
    assert box.find_element(By.TAG_NAME, "output").text.startswith(f"{len(shown)} of ")
    field.clear()
    field.send_keys(" ")
    everywhere = browser.find_element(By.ID, "everywhere")
    everywhere.send_keys("mixout")
    assert all("mixout" in name for name in column(browser, table, 0))
    rows = browser.execute_script(
        "return [...document.querySelectorAll('.box tbody tr')].filter(row => !row.hidden).map(row => row.textContent)"
    )
    assert len(rows) > 15
    assert all("mixout" in row for row in rows)
    assert browser.find_element(By.CSS_SELECTOR, ".drawn tfoot tr").is_displayed()
    browser.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", everywhere)
    assert len(column(browser, table, 0)) >= len(THIRTEEN)


def check_runs_of_a_number(browser: Any, table: Any) -> None:
    """A number leads to its runs, with their hyper-parameters and environment."""
    from selenium.webdriver.common.by import By

    number = table.find_element(By.CSS_SELECTOR, "td:nth-child(2) button")
    click(browser, number)
    dialog = browser.find_element(By.TAG_NAME, "dialog")
    wait(browser, dialog.is_displayed)
    runs = dialog.find_elements(By.TAG_NAME, "details")
    assert len(runs) == 3
    assert all(re.search(r", seed \d: [\d.]+ \w+ \(validation\)$", run.text) for run in runs)
    runs[0].find_element(By.TAG_NAME, "summary").click()
    wait(browser, lambda: "recipe.batch_size" in runs[0].text)
    assert "environment.torch" in runs[0].text
    assert "hashes.init" in runs[0].text
    dialog.find_element(By.CSS_SELECTOR, ".theme").click()
    wait(browser, lambda: not dialog.is_displayed())
