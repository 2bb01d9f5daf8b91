"""The chat page in headless Chromium. Skipped, loudly, where playwright or Chromium is missing (pip install playwright;
apt-get install chromium)."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from serving import Server
from test_openai import TOOLS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not tested")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as library:
        launched = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture()
def page(browser, idle, tmp_path, request):
    """The page of the server, with greedy answers, whose errors fail the test. Requests to elsewhere fail it too."""
    opened = browser.new_page(viewport={"width": 1000, "height": 700})
    faults: list = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith((idle.url, "data:")) else faults.append("asks " + r.url))
    opened.goto(idle.url)
    playwright.expect(opened.locator("#model")).to_have_text("tiny")
    opened.click("#open-settings")
    opened.fill("#temperature", "0")
    yield opened
    folder = Path(os.environ.get("GLINT_SCREENSHOTS", tmp_path))
    opened.screenshot(path=folder / f"{request.node.name}.png")
    opened.close()
    assert not faults


def ask(page, text):
    page.fill("#question", text)
    page.press("#question", "Enter")


def done(page):
    playwright.expect(page.locator("#send")).to_be_visible(timeout=60000)


def test_an_answer_streams_and_its_thinking_folds(page):
    page.fill("#max_tokens", "60")
    ask(page, "Tell me a story about a fox.")
    answer = page.locator("article.assistant")
    playwright.expect(answer).to_be_visible()
    done(page)
    assert len(answer.inner_text()) > 40
    assert re.search(r"\d+ tokens read, \d+ written", answer.locator(".note").inner_text())
    assert re.search(r"[\d.]+ tok/s · first after [\d.]+ s", page.locator("#speed").inner_text())
    thought = answer.locator("details").first
    if thought.is_visible():  # folded once the answer began
        assert thought.get_attribute("open") is None


def test_calls_are_shown_and_results_go_back(page):
    page.fill("#tools", json.dumps(TOOLS))
    page.fill("#system", "You are a helpful assistant.")
    ask(page, "What is 12 plus 30?")
    done(page)
    call = page.locator("details.call")
    playwright.expect(call).to_have_count(1)
    assert "add_numbers" in call.locator("summary").inner_text()
    assert json.loads(call.locator(".arguments").inner_text()) == {"a": 12, "b": 30}
    call.locator("textarea").fill("42")
    page.click("text=Send the results")
    done(page)
    playwright.expect(page.locator("article.assistant")).to_have_count(2)
    playwright.expect(call.locator("pre").last).to_have_text("42")
    playwright.expect(page.locator("article.assistant").last).to_contain_text("12 plus 30")


def test_stop_again_and_new_chat(page):
    page.fill("#max_tokens", "4000")
    page.uncheck("#thinking")
    ask(page, "Tell me a long story about a dog.")
    playwright.expect(page.locator("article.assistant")).to_contain_text(re.compile(r"\w+\W+\w+\W+\w+"))
    # In the page itself: between a look from here and a click the answer may end, and the button with it.
    page.locator("#stop").evaluate("stop => { if (stop.offsetParent !== null) stop.click(); }")
    done(page)
    page.fill("#max_tokens", "8")
    page.click("#again")
    done(page)
    playwright.expect(page.locator("article.assistant")).to_have_count(1)
    page.click("#clear")
    playwright.expect(page.locator("article")).to_have_count(0)
    page.reload()  # settings live on
    page.click("#open-settings")
    assert page.input_value("#max_tokens") == "8"
    assert not page.is_checked("#thinking")


def test_what_the_server_refuses_is_said(page):
    page.fill("#tools", '[{"type": "function", "function": {}}]')
    ask(page, "Hello")
    playwright.expect(page.locator(".note.error")).to_contain_text("tools[0].function.name")


def test_a_key_is_asked_for_and_used(browser):
    with Server("--api-key", "secret") as server:
        opened = browser.new_page()
        opened.goto(server.url)
        playwright.expect(opened.locator("#model")).to_have_text("an API key is needed")
        opened.click("#open-settings")
        opened.fill("#key", "secret")
        opened.locator("#key").blur()
        playwright.expect(opened.locator("#model")).to_have_text("tiny")
        opened.close()
