"""A real Chromium, driven headless, for the browser test and the pictures of the docs."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def browser_page(*, width: int = 1280, height: int = 900) -> Generator[Page]:
    """A page of Debian's Chromium, which only reaches this machine."""
    program = shutil.which("chromium")
    if program is None:
        raise RuntimeError("There is no chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=QUIET)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            page.route("**/*", lambda route: route.continue_() if _local(route.request.url) else route.abort())
            yield page
        finally:
            browser.close()


def _local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))
