"""From a configuration to a running supervisor and its exit code: the part before the event loop, and after it.

Knows what has to be so before anything is bound, and who is to be told why there is no proxy.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from tlsproxy import logs
from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime import host
from tlsproxy.runtime.inheritance import begin
from tlsproxy.runtime.predecessor import Predecessor, told_of_failure
from tlsproxy.runtime.supervisor import Supervisor
from tlsproxy.runtime.systemd import Service, make_notifier
from tlsproxy.settings import Loaded


def run(loaded: Loaded, reread: Callable[[], Loaded], service: Service, predecessor: Predecessor | None) -> int:
    """Serve until told to stop. Returns the exit code; a reason not to start goes to stderr.

    `reread` reads the configuration anew, from everywhere it came from; raises ConfigError. With a `predecessor` this
    is an upgrade. After one, this process may stay as a stand-in; it then returns what the proxy ended with.
    """
    settings = loaded.settings
    logs.configure(settings.log)
    try:
        with told_of_failure(predecessor):
            host.check_user(settings, is_reload=predecessor is not None)
            host.raise_file_limit()
            inheritance = begin(settings, service, predecessor)
        supervisor = Supervisor(settings, inheritance, reread)
        asyncio.run(supervisor.serve())
    except TlsproxyError as error:
        if predecessor is None:  # else the service is well, and it is not for us to say anything
            make_notifier(service.notify).failed(str(error))
        sys.stderr.write(f"tlsproxy: {error}\n")
        return error.exit_code
    return supervisor.upgrades.stand_in()
