"""The demo: two FastAPI instances, tlsproxy before them, a certificate of the internal CA.

Owns the processes it starts and stops each by its pid, the proxy first. Everything it writes lies in one
folder (.demo). Run it through scripts/demo, which makes the virtual environment.
"""

import argparse
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from demo_checks import Target, run_checks

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN = 30.0
STOP_WITHIN = 12.0  # longer than the proxy's own drain (9.5 s)

CONFIG = """\
# Written by scripts/demo at each start; change it freely under another name and run: tlsproxy run --config FILE
[listen]
https = [{https}]
http = [{http}]

[store]
url = "{store}"

[admin]
socket = "{socket}"

[[sites]]
hosts = ["localhost"]            # a local name: certificate of the internal CA

[[sites.routes]]
path = "/"
backends = [{backends}]
balance = "round_robin"
"""


class DemoError(Exception):
    """The demo can't go on; the message says why and what to do."""


def main() -> int:
    arguments = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with ExitStack() as running:
            return _demo(arguments, running)
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
        return 1 if arguments.check else 0
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr, flush=True)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="try everything, print what was seen, exit 0 if all is right"
    )
    parser.add_argument("--dir", type=Path, default=ROOT / ".demo", help="folder for certificates and logs (.demo)")
    return parser.parse_args()


def _stop(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _demo(arguments: argparse.Namespace, running: ExitStack) -> int:
    folder: Path = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    https, http_port = _port("DEMO_HTTPS", 8443), _port("DEMO_HTTP", 8080)
    backends = [running.enter_context(_backend(name, folder)) for name in ("one", "two")]
    config = _write_config(folder, https, http_port, backends)
    log = folder / "tlsproxy.log" if arguments.check else None
    proxy = running.enter_context(_process("tlsproxy", [*_tlsproxy(), "run", "--config", str(config)], log))
    _wait_until("tlsproxy", proxy, lambda: _answers_tls(https), log)
    target = Target(https_port=https, http_port=http_port, ca=_save_root(folder, config))
    print(f"==> tlsproxy on https://{target.origin} and http://localhost:{http_port}", file=sys.stderr, flush=True)
    if arguments.check:
        return 0 if run_checks(target) else 1
    _print_hints(target, folder)
    return _until_stopped(proxy)


# --- ports and files


def _port(variable: str, default: int) -> int:
    """Return the port to listen on, or explain how to choose another when it is taken."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DemoError(f"{variable}={text} is not a port. Choose one like {variable}={default}.")
    port = int(text)
    for address in _loopback():
        try:
            _listen(address, port).close()
        except OSError as error:
            raise DemoError(
                f"port {port} on {address} can't be used ({error.strerror}). "
                f"Stop what listens there, or choose another: {variable}={port + 1000} scripts/demo"
            ) from error
    return port


def _listen(address: str, port: int) -> socket.socket:
    """Bind and listen as the proxy will, so that what is free here is free for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _loopback() -> list[str]:
    """Return the loopback addresses of this machine: many containers have no IPv6."""
    try:
        _listen("::1", 0).close()
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


def _write_config(folder: Path, https: int, http_port: int, backends: list[str]) -> Path:
    def quoted(values: list[str]) -> str:
        return ", ".join(f'"{value}"' for value in values)

    hosts = [f"[{address}]" if ":" in address else address for address in _loopback()]
    config = folder / "tlsproxy.toml"
    config.write_text(
        CONFIG.format(
            https=quoted([f"{host}:{https}" for host in hosts]),
            http=quoted([f"{host}:{http_port}" for host in hosts]),
            store=(folder / "store").as_uri(),
            socket=folder / "admin.sock",
            backends=quoted(backends),
        )
    )
    return config


def _save_root(folder: Path, config: Path) -> Path:
    """Ask tlsproxy for the root of its internal CA and keep it where curl can read it."""
    command = [*_tlsproxy(), "trust", "--print"]
    environment = {**os.environ, "TLSPROXY_CONFIG": str(config)}
    printed = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=READY_WITHIN, check=False
    )
    if printed.returncode != 0:
        raise DemoError(f"`tlsproxy trust --print` failed: {printed.stderr.strip()}")
    root = folder / "ca.pem"
    root.write_text(printed.stdout)
    return root


# --- processes


def _tlsproxy() -> list[str]:
    return [sys.executable, "-m", "tlsproxy"]


@contextmanager
def _backend(name: str, folder: Path) -> Iterator[str]:
    """Run one FastAPI instance on a free port; yield its URL."""
    listener = _listen("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    listener.close()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "scripts"), "--port", str(port), "demo_app:app"]
    log = folder / f"fastapi-{name}.log"
    with _process(f"FastAPI {name}", command, log, {"DEMO_INSTANCE": name}) as process:
        _wait_until(f"FastAPI {name}", process, lambda: _answers_http(port), log)
        print(f"==> FastAPI instance {name} on http://127.0.0.1:{port} (uvicorn)", file=sys.stderr, flush=True)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(
    name: str, command: list[str], log: Path | None, extra: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own (Ctrl-C reaches us alone); stop it at the end, kill it if it will not."""
    with ExitStack() as files:
        output = files.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                print(f"demo: {name} did not stop within {STOP_WITHIN:.0f} s, killed", file=sys.stderr, flush=True)
                process.kill()
                process.wait()


def _wait_until(name: str, process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path | None) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not ready():
        if process.poll() is not None:
            raise DemoError(f"{name} ended with status {process.returncode} at start.{_tail(log)}")
        if time.monotonic() > deadline:
            raise DemoError(f"{name} was not ready within {READY_WITHIN:.0f} s.{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path | None) -> str:
    if log is None:
        return ""
    lines = log.read_text(errors="replace").splitlines()[-20:]
    return f" The end of {log}:\n" + "\n".join(f"    {line}" for line in lines)


def _answers_http(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _answers_tls(port: int) -> bool:
    """Shake hands without verifying: the root is only known once the proxy has made it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=2) as plain,
            context.wrap_socket(plain, server_hostname="localhost"),
        ):
            return True
    except OSError:
        return False


def _print_hints(target: Target, folder: Path) -> None:
    ca, config = _short(target.ca), _short(folder / "tlsproxy.toml")
    print(
        f"""
  curl --cacert {ca} https://{target.origin}/whoami
  curl --cacert {ca} -N "https://{target.origin}/events?count=10&pause=0.5"
  curl -i http://localhost:{target.http_port}/items/

The configuration is {config}, the API is at https://{target.origin}/docs
(your browser warns until it trusts {ca}). Ctrl-C stops everything.
""",
        flush=True,
    )


def _short(path: Path) -> Path:
    """Return the path as it can be typed in the folder the demo was called from."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _until_stopped(proxy: subprocess.Popen[bytes]) -> int:
    status = proxy.wait()
    raise DemoError(f"tlsproxy ended with status {status}")


if __name__ == "__main__":
    sys.exit(main())
