"""A real Chromium for tests, spoken to over a pipe (the DevTools protocol, without any client library)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio"),
    "--remote-debugging-pipe",
]
PATIENCE = 60.0


@dataclass
class Browser:
    """One page. `console` and `requests` collect what it says and asks for."""

    reader: int
    writer: int
    session: str = ""
    number: int = 0
    left: bytes = b""
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: int = 0

    def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False, media: str = "") -> None:
        """Load a page and wait until it is there; console and requests start anew."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.console.clear()
        self.requests.clear()
        before = self.loaded
        self.call("Page.navigate", url=url)
        while self.loaded == before:
            self._listen()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._listen()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _listen(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            chunk = os.read(self.reader, 1 << 16)
            assert chunk, "Chromium went away"
            self.left += chunk
        text, _, self.left = self.left.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self.loaded += 1
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.console.append(f"{parameters['type']}: {parameters['args']}")
            case "Runtime.exceptionThrown":
                self.console.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, end it afterwards."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "this test needs a browser: install Debian's package chromium (apt-get install chromium)"
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            # the protocol speaks on descriptors 3 and 4
            ["bash", "-c", f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}', *command],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        try:
            yield _page(Browser(read_answers, write_commands))
        finally:
            os.close(write_commands)
            os.close(read_answers)
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _page(found: Browser) -> Browser:
    """Attach to the first page and switch on what is listened to."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        pages = [t for t in found.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        if pages:
            target = pages[0]["targetId"]
            found.session = found.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                found.call(f"{domain}.enable")
            return found
    raise AssertionError("Chromium opened no page")
