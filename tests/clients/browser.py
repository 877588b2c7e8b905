"""Chromium against the page: argv[1] is its address, argv[2] the browser, argv[3] a hostile name, argv[4] such a text.

Prints what it saw as JSON.
"""

import json
import sys
from pathlib import Path
from urllib.parse import quote

import axe_playwright_python
from playwright.sync_api import sync_playwright

BASE, CHROMIUM, HOSTILE_NAME, HOSTILE_TEXT = sys.argv[1:]
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
NOTE = "😀a\n\nDr. Müller saw Jones."
VIEWS = {
    "catalogue": "/",
    "entry": "/entry?name=minilm",
    "memory": "/memory",
    "difference": "/diff?before=deid&after=cut",
    "form": "/try?name=deid&action=entities",
    "problem": "/entry?name=nix",
}
FIELDS = {
    "deid/redact": {"text": NOTE},
    "cut/entities": {"text": "Dr. Smith saw Jones, and more was said afterwards."},
    "cls/classify": {"text": "no fever"},
    "mlm/fill-mask": {"text": "no [MASK] now"},
    "rank/rerank": {"query": "fever", "documents": "no fever\npain in the chest"},
    "minilm/embed": {"sentences": "no fever\npain\nno pain"},
    "writer/complete": {"text": "Aspirin is"},
}
COLOURED = ("catalogue", "entry", "memory", "difference", "deid/redact", "minilm/embed")  # looked at in the dark, too

found = {"console": [], "elsewhere": [], "dialogs": [], "violations": {}, "too_wide": [], "answers": {}}


def watch(page):
    page.on("console", lambda message: found["console"].append(message.text))
    page.on("pageerror", lambda error: found["console"].append(str(error)))
    page.on("request", lambda request: request.url.startswith(BASE) or found["elsewhere"].append(request.url))
    page.on("dialog", lambda dialog: (found["dialogs"].append(dialog.message), dialog.dismiss()))
    return page


def check(page, what, scheme):
    if scheme == "light" or what in COLOURED:
        page.evaluate(f"{AXE};0")
        run = "async rules => (await axe.run(document, {runOnly: rules, resultTypes: ['violations']})).violations"
        rules = RULES if scheme == "light" else ["color-contrast"]  # the structure is the same
        if violations := [[each["id"], each["nodes"][0]["html"]] for each in page.evaluate(run, rules)]:
            found["violations"][f"{what}, {scheme}"] = violations
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        found["too_wide"].append(what)


def ask(page, name, action, fields):
    page.goto(f"{BASE}/try?name={quote(name)}&action={action}")
    for field, value in fields.items():
        page.fill(f"[name={field}]", value)
    page.click(".submit button")
    page.wait_for_selector("#result .call, #result .notice.bad")  # what comes last


def places(page):
    return page.eval_on_selector_all(".scores td:nth-child(3)", "cells => cells.map(cell => cell.textContent)")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
    for scheme, width, height in (("light", 1440, 900), ("dark", 390, 844)):
        page = watch(browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height}))
        for view, address in VIEWS.items():
            page.goto(BASE + address)
            check(page, view, scheme)
        found["console"] = [text for text in found["console"] if "404" not in text]  # the problem is asked for
        for what, fields in FIELDS.items():
            ask(page, *what.split("/"), fields)
            found["answers"][what] = page.inner_text("#result")
            check(page, what, scheme)
        page.close()

    page = watch(browser.new_page())
    page.goto(BASE)
    page.keyboard.press("/")
    page.keyboard.type("minilm")
    page.locator("#found tbody tr").nth(1).wait_for(state="detached")
    found["typed"] = {"names": page.inner_text("#found tbody th a"), "address": page.url}
    found["focus"] = page.evaluate("document.activeElement.name")
    page.keyboard.press("Tab")
    page.focus("#found tbody a.name")
    page.keyboard.press("Enter")
    page.wait_for_url("**/entry?name=minilm")
    ask(page, "deid", "entities", {"text": NOTE})
    found["places"] = places(page)
    found["field"] = page.input_value("textarea")
    page.emulate_media(media="print", color_scheme="dark")
    ink = page.eval_on_selector("body", "element => getComputedStyle(element).color")
    paper = page.eval_on_selector("#result .card", "element => getComputedStyle(element).backgroundColor")
    found["printed"] = [ink, paper, page.is_visible(".ask"), page.is_visible("#result .note")]
    page.emulate_media(media="screen", color_scheme="light")
    page.goto(f"{BASE}/")
    page.go_back()
    found["kept"] = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    ask(page, HOSTILE_NAME, "redact", {"text": HOSTILE_TEXT})
    found["hostile"] = [page.inner_text("h1"), page.input_value("textarea")]
    ask(page, "deid", "entities", {"text": "fever", "threshold": "much"})
    found["refused"] = page.inner_text("#result")
    found["console"] = [text for text in found["console"] if "422" not in text]  # Chromium notes that answer
    page.goto(f"{BASE}/memory")
    page.fill("[name=model]", "mlm")
    page.click("text=Load >> nth=-1")
    page.wait_for_selector("a[href='/entry?name=mlm']")
    page.click("tr:has(a[href='/entry?name=mlm']) >> text=Pin")
    page.wait_for_selector("tr:has(a[href='/entry?name=mlm']) >> text=pinned")
    with page.expect_response(lambda answer: answer.url == f"{BASE}/memory" and answer.status == 200):
        pass  # the page asks again by itself
    page.click("tr:has(a[href='/entry?name=mlm']) >> text=Unload")
    page.wait_for_selector("a[href='/entry?name=mlm']", state="detached")
    page.close()

    plain = browser.new_context(java_script_enabled=False)
    page = watch(plain.new_page())
    page.goto(BASE)
    page.fill("[name=q]", "deid")
    page.click("text=Filter")
    found["plain"] = {"rows": page.locator("#found tbody tr").count(), "address": page.url}
    ask(page, "deid", "entities", {"text": NOTE})
    found["plain"]["places"] = places(page)
    ask(page, "writer", "complete", {"text": "Aspirin is"})
    found["plain"]["answer"] = page.inner_text("#result")
    browser.close()

print(json.dumps(found))
