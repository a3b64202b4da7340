"""Debian's Chromium without a window, driven over a pipe by the DevTools protocol.

It is led nowhere: no name resolves but those that a test maps to this machine. All that it asks for
and complains of is kept, so that a test can hold the page to it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ANSWER_S = 60.0
OPTIONS = (
    "--headless",
    "--no-sandbox",  # tests run as root, which its sandbox refuses
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-pipe",
    "--force-color-profile=srgb",
)
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Tab:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Calls a method of the protocol."""
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> str:
        """Leads the page to a URL, until it is loaded; returns why that failed, or nothing."""
        if failed := str(self.call("Page.navigate", url=url).get("errorText", "")):
            return failed
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return ""

    def evaluate(self, expression: str) -> Any:
        """Gives the value of a JavaScript expression; waits for a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, *, within_s: float = 30) -> Any:
        """Gives the first true value of an expression."""
        deadline = time.monotonic() + within_s
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"not within {within_s} s: {expression}"
            time.sleep(0.05)
        return value

    def prefer(self, scheme: str) -> None:
        """Says whether the user prefers `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        text = {"Tab": "", "Enter": "\r"}.get(key, key)
        code = KEYS.get(key, ord(key[0].upper()))
        about = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """Writes what can be seen in a window of this size as PNG."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def told(self, method: str) -> list[dict[str, Any]]:
        """The events of a kind that the page has given so far."""
        return [
            event["params"]
            for event in self._browser.events
            if event["method"] == method and event.get("sessionId") == self._session
        ]

    def complaints(self) -> list[str]:
        """What the browser holds against the page: exceptions, policies broken, what is missing."""
        thrown = [str(one["exceptionDetails"]) for one in self.told("Runtime.exceptionThrown")]
        logged = [one["entry"] for one in self.told("Log.entryAdded")]
        return thrown + [f"{one['text']} {one.get('url', '')}" for one in logged]

    def requests(self) -> list[str]:
        """All URLs that the page has asked for."""
        return [one["request"]["url"] for one in self.told("Network.requestWillBeSent")]


class Browser:
    """A browser that runs; made by `chromium`."""

    def __init__(self, requests: int, answers: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._requests = requests
        self._answers = answers
        self._number = 0
        self._read = b""

    def tab(self) -> Tab:
        """Opens an empty page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session)

    def call(self, method: str, session: str = "", **params: object) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_S
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def _next(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._read:
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self._answers], [], [], left_s)[0], f"{method} is not answered"
            more = os.read(self._answers, 1 << 20)
            assert more, f"the browser ended during {method}"
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextlib.contextmanager
def chromium(
    directory: Path, *enter: str, names: Sequence[str] = (), address: str = "127.0.0.1"
) -> Iterator[Browser]:
    """Runs a browser while inside.

    Args:
        directory: For its profile and its log.
        enter: What stands before its command, to run it in a network namespace.
        names: Those that resolve, to `address`; all others do not.
        address: Of this machine.
    """
    program = shutil.which("chromium")
    assert program, "install the package chromium"
    rules = ", ".join(
        [*(f"MAP {name} {address}" for name in names), f"MAP * ~NOTFOUND, EXCLUDE {address}"]
    )
    ends = [end for pair in (os.pipe(), os.pipe()) for end in pair]
    # Numbers that the two it wants, 3 and 4, can't collide with.
    theirs = [fcntl.fcntl(ends[number], fcntl.F_DUPFD, 10) for number in (0, 3)]
    os.close(ends[0])
    os.close(ends[3])
    words = [program, *OPTIONS, f"--user-data-dir={directory}", f"--host-resolver-rules={rules}"]
    script = f'exec 3<&{theirs[0]} 4>&{theirs[1]} {theirs[0]}<&- {theirs[1]}>&-; exec "$@"'
    with (directory / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [*enter, "bash", "-c", script, "bash", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=theirs,
            start_new_session=True,
        )
    for end in theirs:
        os.close(end)
    try:
        yield Browser(ends[1], ends[2])
    finally:
        os.close(ends[1])
        os.close(ends[2])
        # It and its helpers are a process group of their own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
