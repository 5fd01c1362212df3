"""A headless Chromium for tests of pages, driven by Selenium; skipped where there is none."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
)


class Browser:
    """One session of a headless Chromium."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script that ends with ``return``."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 30.0) -> None:
        """Run a script again and again until it returns something true."""
        until = time.monotonic() + seconds
        while not self.run(f"return Boolean((() => {{ {script} }})())"):
            if time.monotonic() > until:
                raise AssertionError(f"never true: {script}\nlog: {self.log('browser')}")
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Keys by their character, or by their name in Selenium (``ARROW_RIGHT``)."""
        from selenium.webdriver import ActionChains, Keys

        actions = ActionChains(self.driver, duration=0)
        for key in keys:
            actions.send_keys(getattr(Keys, key) if len(key) > 1 else key)
        actions.perform()

    def resize(self, width: int, height: int) -> None:
        """The size of the page itself: phone widths are below a window's smallest."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.driver.get_screenshot_as_base64()))
        return path

    def log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(kind)
        return found

    def requested(self) -> list[str]:
        """Every URL that was asked for since the last call, data and blob URLs left out."""
        urls = []
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        own = ("data:", "blob:", "chrome:", "chrome-untrusted:")  # the new-tab page is Chromium's
        return [url for url in urls if not url.startswith(own)]


@contextmanager
def browser(folder: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[Browser]:
    """A browser with a profile of its own; skips the test where there is no Chromium."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no chromium with chromedriver (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)  # nothing is downloaded
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(60)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
