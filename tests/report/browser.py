"""A headless Chromium, driven through its DevTools protocol over a pair of pipes: no port, no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 120.0
"""Seconds for an answer."""


class Page:
    """One page; what it logs, and what it asks the network for, is kept."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers, self._buffer, self._number = requests, answers, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; the events that come before it are kept."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, *, width: int, height: int = 900, scripts: bool = True) -> None:
        """Load a file in a window of this size, and wait until it has loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < deadline, "the page does not load"
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, *, clicks: int = 1) -> None:
        """Move, press or release the mouse at a point of the window, then wait until the page is drawn again."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": clicks}
        held = 1 if kind == "mousePressed" else 0
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=held, **button)
        self.settle()

    def settle(self) -> None:
        """Wait until the page is drawn again."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one point, move, and release at another."""
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=end[0], y=end[1], button="left", buttons=1)
        self.mouse("mouseReleased", *end)

    def screenshot(self, file: Path) -> None:
        """All of the page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(image["data"]))

    def complaints(self) -> list[Any]:
        """What the page has logged, thrown or been forbidden."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def fetched(self) -> list[str]:
        """The addresses that it asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


@contextmanager
def chromium(program: str, folder: Path) -> Iterator[Page]:
    """Start Chromium with its files in a folder of its own, and end it afterwards."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]  # the shell needs 3 and 4 free
    command = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(
            ["bash", "-c", command, "-", program, *FLAGS, f"--user-data-dir={folder}/profile"],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    for end in (to_read, from_write, *theirs):
        os.close(end)
    try:
        yield Page(to_write, from_read)
    finally:
        browser.terminate()
        with suppress(subprocess.TimeoutExpired):
            browser.wait(30)
        browser.kill()
        for end in (to_write, from_read):
            os.close(end)
