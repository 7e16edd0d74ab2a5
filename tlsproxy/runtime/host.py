"""What the supervisor needs from the machine it runs on: a user to become, enough descriptors, no orphans left behind.

Knows users, limits and processes; nothing of sites, of children's work or of their configuration.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Collection

from tlsproxy.runtime import privileges
from tlsproxy.settings import Settings

logger = logging.getLogger(__name__)


def check_user(settings: Settings, *, is_reload: bool = False) -> None:
    """Find out before anything is bound whether the children will be able to become `server.user`."""
    account = privileges.find_account(settings.server.user)
    if account is not None:
        privileges.check_interpreter(account)
        privileges.prepare_store(settings.store.url, account)
        privileges.prepare_log(settings.log.access, account)
    elif os.geteuid() == 0 and not settings.server.user and not is_reload:
        logger.warning("privileges.root", extra={"hint": privileges.ROOT_ADVICE})


def raise_file_limit() -> None:
    """A proxy needs two descriptors per request; the usual soft limit of 1024 exists for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    # macOS reports no limit but takes none above OPEN_MAX; it then stays as it was.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def reap_strangers(known: Collection[int]) -> None:
    """As PID 1 of a container we inherit orphans (of `docker exec`, of hooks); nobody else collects them."""
    while True:
        try:
            # WNOWAIT: one of our own must stay for Popen, which wants its status; its SIGCHLD is still to come.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
