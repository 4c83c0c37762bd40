"""A headless Chromium that reaches 127.0.0.1 and nothing else, driven through its debugging pipe."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30  # seconds for anything


class Browser:
    """A window with one page; `requests` are the addresses that it asked for, `complaints` what its console said."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        cut = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", cut]
        flags += [f"--user-data-dir={folder / 'profile'}", "--window-size=1160,1500"]
        # the browser reads its file 3 and writes its file 4
        script = f'exec 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *flags, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            reply = self._message(until)
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser has gone"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(first)
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters)[:500])
        return message

    def open(self, url: str) -> str | None:
        """Go to an address; why it could not be reached, if it could not."""
        return self.call("Page.navigate", url=url).get("errorText")

    def see(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str, what: str) -> Any:
        """The value of an expression as soon as it is true."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if value := self.see(script):
                return value
            time.sleep(0.02)
        raise AssertionError(f"{what}: not within {PATIENCE} s")

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """A place within an element, by shares of its width and height, in the window."""
        left, top, width, height = self.see(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect(); "
            f"return [b.left, b.top, b.width, b.height] }})(document.querySelector({json.dumps(selector)}))"
        )
        assert width and height, f"{selector} cannot be seen"
        return left + x * width, top + y * height

    def drag(self, selector: str, *places: tuple[float, float]) -> None:
        """Press the mouse at the first place within an element, move it to the others, and let it go."""
        for number, at in enumerate(places):
            x, y = self.place(selector, *at)
            self._mouse("mouseMoved" if number else "mousePressed", x, y)
        self._mouse("mouseReleased", x, y)

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.drag(selector, (0.5, 0.5))

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replace the text of an input by keys."""
        self.see(f"document.querySelector({json.dumps(selector)}).select()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key="Delete", windowsVirtualKeyCode=46)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list, whose menu is no part of a headless page."""
        self.see(
            f"(e => {{ e.value = {json.dumps(value)}; for (const kind of ['input', 'change']) "
            f"e.dispatchEvent(new Event(kind, {{bubbles: true}})) }})(document.querySelector({json.dumps(selector)}))"
        )

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self) -> bytes:
        """The whole page as a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            os.close(self._in)
            os.close(self._out)
