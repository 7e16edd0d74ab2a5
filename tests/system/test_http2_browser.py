"""A real Chromium that speaks HTTP/2 to the proxy: a page of many parts, and everything else it does on one connection.

That it is one connection is said by three who know: the browser (`nextHopProtocol`, and no time spent on connecting),
the kernel (which clients the worker is connected to) and the access log (the version of each request).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from selenium.webdriver import Chrome

from tests.system.pressure import client_ports
from tests.system.running import PATIENCE, Proxy, running_proxy, until, write_pair
from tests.system.test_browser import let_trust, needs_chromium, start_chromium

pytestmark = [pytest.mark.system, *needs_chromium]

HOST = "app.localhost"
PARTS = 200
SLOW = 50


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, trust: ssl.SSLContext, app: str
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("browser-http2")
    site = f"""
        [[sites]]
        hosts = ["{HOST}"]
        certificate = {write_pair(folder, authority, HOST)}
        backends = ["{app}"]
    """
    with running_proxy(folder, trust, site) as running:
        yield running


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy, authority: trustme.CA) -> Iterator[Chrome]:
    home = tmp_path_factory.mktemp("home-http2")
    let_trust(home, authority.cert_pem.bytes())
    driver = start_chromium(home, proxy, "--disable-features=BackForwardCache")  # it would keep what a page asked for
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Chrome, proxy: Proxy) -> Chrome:
    """The browser on a page of ours, as each test finds it."""
    started.get(f"https://{HOST}:{proxy.port}/hello")
    assert started.execute_script("return performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
    return started


def run(browser: Chrome, script: str, *arguments: object) -> Any:
    """Return what the body of an async function returns, `args` being its arguments; what it throws fails the test."""
    result = browser.execute_async_script(
        "const args = Array.from(arguments), tell = args.pop();"
        f"(async () => {{ {script} }})().then(value => tell({{value}}), error => tell({{error: String(error)}}));",
        *arguments,
    )
    assert "error" not in result, result["error"]
    return result.get("value")


def logged(proxy: Proxy, prefix: str, count: int) -> list[dict[str, Any]]:
    """Return the lines of the access log for these paths, once so many are there."""

    def find() -> list[dict[str, Any]] | None:
        lines = [line for line in proxy.request_lines() if line["path"].startswith(prefix)]
        return lines if len(lines) >= count else None

    lines = until(find, f"{count} requests of {prefix} in the access log")
    assert len(lines) == count
    return lines


@pytest.fixture
def connections(browser: Chrome, proxy: Proxy) -> Iterator[set[int]]:
    """The browser's connections, by its ports: no test makes it open another.

    There may be a second one, which Chromium opened before it knew that HTTP/2 needs only one, and leaves unused.
    """
    (worker,) = proxy.workers()
    before = client_ports(worker, proxy.port)
    assert 1 <= len(before) <= 2
    yield before
    assert client_ports(worker, proxy.port) <= before


def test_a_page_of_many_parts_on_one_connection(browser: Chrome, proxy: Proxy, connections: set[int]) -> None:
    browser.get(f"https://{HOST}:{proxy.port}/resources?count={PARTS}")
    try:
        until(lambda: browser.execute_script("return arrived.size") == PARTS, "every part has come and is right")
    finally:
        missing = "return Array.from({length: arguments[0]}, (_, n) => n).filter(n => !arrived.has(n))"
        print("missing:", browser.execute_script(missing, PARTS))
    shown = "it => [it.nextHopProtocol, it.connectEnd - it.connectStart]"
    parts = "performance.getEntriesByType('resource').filter(it => it.name.includes('/resources/'))"  # no favicon
    timings = browser.execute_script(f"return {parts}.map({shown})")
    assert len(timings) == PARTS
    assert {tuple(timing) for timing in timings} == {("h2", 0)}
    lines = logged(proxy, "/resources/", PARTS)
    assert ({line["http"] for line in lines}, {line["status"] for line in lines}) == ({"2"}, {200})


def test_a_websocket_is_one_of_the_streams(browser: Chrome, proxy: Proxy, connections: set[int]) -> None:
    said = run(
        browser,
        """
        const socket = new WebSocket(`wss://${location.host}/ws/echo`);
        socket.binaryType = "arraybuffer";
        const waiting = [];
        socket.onmessage = event => waiting.shift()(event.data);
        const next = () => new Promise(take => waiting.push(take));
        const about = JSON.parse(await next());
        const large = "ü".repeat(500000), bytes = new Uint8Array(3 << 20).map((_, n) => n * 7 + (n >> 8));
        const wrong = [];
        for (const sent of ["small", "", large]) {
            socket.send(sent);
            if (await next() !== sent) wrong.push(sent.length);
        }
        socket.send(bytes);
        const back = new Uint8Array(await next());
        if (back.length !== bytes.length || back.some((value, n) => value !== bytes[n])) wrong.push("bytes");
        const beside = await (await fetch("/hello?beside")).text();
        const closed = new Promise(take => { socket.onclose = event => take([event.code, event.wasClean]); });
        socket.close(3001, "done");
        return {scheme: about.scheme, path: about.path, wrong, beside, closed: await closed};
        """,
    )
    assert said == {"scheme": "wss", "path": "/ws/echo", "wrong": [], "beside": "hello", "closed": [3001, True]}
    line = proxy.logged(path="/ws/echo")
    assert (line["http"], line["alpn"], line["method"]) == ("2", "h2", "GET")


def test_many_websockets_on_one_connection(browser: Chrome, connections: set[int]) -> None:
    said = run(
        browser,
        """
        const talk = number => new Promise((take, fail) => {
            const socket = new WebSocket(`wss://${location.host}/ws/echo`);
            let greeted = false;
            socket.onmessage = event => {
                if (!greeted) { greeted = true; socket.send(`word ${number}`); return; }
                socket.onclose = () => take(event.data);
                socket.close();
            };
            socket.onerror = fail;
        });
        return await Promise.all(Array.from({length: 10}, (_, number) => talk(number)));
        """,
    )
    assert said == [f"word {number}" for number in range(10)]


def test_the_close_of_either_side_reaches_the_other(browser: Chrome, connections: set[int]) -> None:
    by_server = run(
        browser,
        """
        const socket = new WebSocket(`wss://${location.host}/ws/close`);
        return await new Promise(take => {
            socket.onclose = event => take([event.code, event.reason, event.wasClean]);
        });
        """,
    )
    assert by_server == [4001, "enough", True]
    heard = run(
        browser,
        """
        const socket = new WebSocket(`wss://${location.host}/ws/wait/chromium-2`);
        await new Promise(take => { socket.onopen = take; });
        socket.close(3007, "bye");
        return await (await fetch("/closed/chromium-2")).json();
        """,
    )
    assert heard == 3007


def test_a_websocket_that_is_not_there_is_an_error(browser: Chrome, connections: set[int]) -> None:
    code = run(
        browser,
        """
        const socket = new WebSocket(`wss://${location.host}/hello`);
        return await new Promise(take => { socket.onclose = event => take([event.code, event.wasClean]); });
        """,
    )
    assert code == [1006, False]


def test_a_subprotocol_is_agreed_on(browser: Chrome, connections: set[int]) -> None:
    chosen = run(
        browser,
        """
        const socket = new WebSocket(`wss://${location.host}/ws/protocols`, ["chat.v1", "chat.v2"]);
        await new Promise(take => { socket.onopen = take; });
        return socket.protocol;
        """,
    )
    assert chosen == "chat.v2"


def test_events_come_one_by_one(browser: Chrome, connections: set[int]) -> None:
    seen = run(
        browser,
        """
        const source = new EventSource("/events/chromium?count=5"), seen = [];
        const waiting = [];
        source.onmessage = event => waiting.shift()(event.data);
        for (let number = 0; number < 5; number++) {
            seen.push(await new Promise(take => {
                waiting.push(take);
                if (number) fetch("/go/chromium", {method: "POST"});
            }));
        }
        source.close();
        return seen;
        """,
    )
    assert seen == ["0", "1", "2", "3", "4"]


def test_an_upload_goes_no_faster_than_it_is_taken(browser: Chrome, connections: set[int]) -> None:
    """The application takes 1 MiB and hesitates: the browser shows progress up to what the windows and buffers hold."""
    size = 128 << 20  # the kernel's own buffers, of four sockets, grow to 20 MiB and more
    said = run(
        browser,
        """
        const request = new XMLHttpRequest(), progress = [];
        request.open("POST", "/hesitate/chromium-slow");
        request.upload.onprogress = event => progress.push(event.loaded);
        const over = new Promise((take, fail) => { request.onload = take; request.onerror = fail; });
        request.send(new Blob([new Uint8Array(args[0])]));
        await fetch(`/received/chromium-slow?least=${1 << 20}`).then(it => it.json());
        let stuck = -1;
        while (stuck < 0 || stuck !== progress.at(-1)) {  // the browser tells every 50 ms while it goes on
            stuck = progress.at(-1) ?? -1;
            await new Promise(take => setTimeout(take, 500));
        }
        await fetch("/go/chromium-slow", {method: "POST"});
        await over;
        return {stuck, last: progress.at(-1), answer: JSON.parse(request.responseText)};
        """,
        size,
    )
    assert said["answer"] == {"bytes": size}
    assert said["last"] == size
    assert said["stuck"] < size // 2


def test_a_body_is_streamed_up(browser: Chrome, connections: set[int]) -> None:
    """`duplex: "half"` is for HTTP/2 alone: Chromium refuses it on a connection of HTTP/1.1."""
    said = run(
        browser,
        """
        const encoder = new TextEncoder(), arrived = [];
        let number = 0;
        const body = new ReadableStream({
            async pull(controller) {
                if (number) {  // what was sent before is at the application already
                    await fetch(`/received/chromium?least=${number * 5}`).then(it => it.json());
                    arrived.push(number);
                }
                if (number++ === 4) controller.close();
                else controller.enqueue(encoder.encode("piece"));
            },
        }, {highWaterMark: 0});
        const answer = await fetch("/receive/chromium", {method: "POST", body, duplex: "half"});
        return {arrived, answer: await answer.json()};
        """,
    )
    assert said == {"arrived": [1, 2, 3, 4], "answer": {"bytes": 20}}


def test_leaving_the_page_gives_up_what_it_asked_for(browser: Chrome, proxy: Proxy, connections: set[int]) -> None:
    run(
        browser,
        """
        for (let number = 0; number < args[0]; number++) fetch(`/held/left?${number}`).catch(() => {});
        await fetch(`/received/left?least=${args[0]}`).then(it => it.json());
        """,
        SLOW,
    )
    browser.get(f"https://{HOST}:{proxy.port}/hello?next-page")
    assert run(browser, "return await (await fetch(`/given-up/left?count=${args[0]}`)).json();", SLOW) == SLOW
    assert {(line["status"], line["http"]) for line in logged(proxy, "/held/left", SLOW)} == {(499, "2")}


def test_one_given_up_fetch_leaves_the_others(browser: Chrome, connections: set[int]) -> None:
    said = run(
        browser,
        """
        const stop = new AbortController();
        const held = fetch("/held/aborted", {signal: stop.signal}).then(() => "answered", error => error.name);
        const stream = await fetch("/stream/aborted?count=2");
        stop.abort();
        const given_up = await (await fetch("/given-up/aborted")).json();
        for (let number = 0; number < 2; number++) await fetch("/go/aborted", {method: "POST"});
        return [await held, given_up, await stream.text()];
        """,
    )
    assert said == ["AbortError", 1, "piece 0\npiece 1\n"]
