"""A headless Chromium for tests, spoken to over its debugging pipe: what a page asks for, logs, shows and prints.

Every wait has an end, and the browser with all its processes ends with the test.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe", "--mute-audio"),
    "--hide-scrollbars",
)
# The protocol's pipes must be descriptors 3 and 4 there.
_START = "import os, sys; [os.dup2(int(sys.argv[k]), k + 2) for k in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Whatever it reports is kept; `pump` takes in what has arrived."""

    def __init__(self, reader: int, writer: int, deadline: float) -> None:
        self._reader, self._writer, self._deadline = reader, writer, deadline
        self._next, self._session, self._buffer = 0, "", b""
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        number = self._send(self._session, method, arguments)
        while number not in self._answers:
            self.pump(self._deadline - time.monotonic())
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _send(self, session: str, method: str, arguments: dict[str, Any]) -> int:
        self._next += 1
        message = {"id": self._next, "method": method, "params": arguments}
        os.write(self._writer, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._next

    def pump(self, seconds: float) -> None:
        """Take in what arrives within some seconds, at least one message."""
        if seconds <= 0 or not select.select([self._reader], [], [], seconds)[0]:
            assert time.monotonic() < self._deadline, "the browser did not answer in time"
            return
        found = os.read(self._reader, 1 << 20)
        assert found, "the browser has ended"
        *whole, self._buffer = (self._buffer + found).split(b"\0")
        for text in whole:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
                continue
            self.events.append(message)
            if message["method"] == "Target.attachedToTarget":  # a worker, which waits until it is listened to
                for method in ("Network.enable", "Runtime.runIfWaitingForDebugger"):
                    self._send(message["params"]["sessionId"], method, {})

    def goto(self, url: str, ready: str = "document.readyState === 'complete'", seconds: float = 10) -> None:
        """Load a page and wait until a JavaScript expression holds."""
        self.call("Page.navigate", url=url)
        self.wait(ready, seconds)

    def wait(self, expression: str, seconds: float = 10) -> None:
        """Wait until a JavaScript expression holds."""
        self.wait_until(lambda: bool(self.evaluate(expression)), seconds, expression)

    def wait_until(self, holds: Callable[[], bool], seconds: float, what: str = "it") -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"not so within {seconds} s: {what}"
            self.pump(0.1)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def size(self, width: int, height: int) -> None:
        """Size of the window in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        """What the user prefers: `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, *, whole: bool = False, to: Path | None = None) -> NDArray[np.uint8]:
        """(Y, X, 3) pixels of the window, or of the whole page."""
        found = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
        if to is not None:
            to.write_bytes(found)
        return np.asarray(Image.open(io.BytesIO(found)).convert("RGB"))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        found = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(found["data"])

    def requests(self) -> list[str]:
        """Addresses that pages asked for, `data:` aside."""
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Whatever pages wrote to the console, uncaught errors, and what the browser refused."""
        found = []
        for event in self.events:
            said = event["params"]
            if event["method"] == "Runtime.consoleAPICalled":
                found.append(f"{said['type']}: " + " ".join(str(a.get("value")) for a in said["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(f"exception: {said['exceptionDetails']}")
            elif event["method"] == "Log.entryAdded":
                found.append(f"{said['entry']['level']}: {said['entry']['text']} {said['entry'].get('url', '')}")
        return found


@contextmanager
def browser(folder: Path, *flags: str, seconds: float = 60) -> Iterator[Page]:
    """A browser with one page, its profile in `folder`; whatever happens, it is gone after at most `seconds`."""
    program = find_browser()
    assert program is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    inside, outside = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1]))
    words = [program, *_FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"]
    start = [sys.executable, "-S", "-c", _START, str(inside), str(outside), *words]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        start, pass_fds=(inside, outside), stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    for end in (inside, outside, to_browser[0], from_browser[1]):
        os.close(end)
    try:
        yield Page(from_browser[0], to_browser[1], time.monotonic() + seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(from_browser[0])
        os.close(to_browser[1])
