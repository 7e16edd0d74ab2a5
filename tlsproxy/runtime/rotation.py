"""Makes the access log's file anew after a rotation, for workers that may not make one beside it.

Knows: `server.user`, the file's folder as it was at the start. Does not know: who rotates, when workers open the file.
Rule: root makes a file only where nobody but root decides what that place is. A worker that was taken over must not get
one in a folder of its choice by putting a link where its own log folder was; where it may write, it needs no help.
"""

from __future__ import annotations

import logging
import os
import stat
from itertools import pairwise
from pathlib import Path

from tlsproxy.runtime import privileges
from tlsproxy.runtime.privileges import Account, PrivilegeError
from tlsproxy.settings import Settings

logger = logging.getLogger(__name__)


class LogMaker:
    """The access log of a supervisor that is root; does nothing for any other."""

    def __init__(self, settings: Settings) -> None:
        """To be made before there are workers: links in the way to the file are followed now, and never again."""
        access = settings.log.access
        self._user = settings.server.user
        self._file = None if access in ("-", "off") else Path(os.path.realpath(access))

    def make(self) -> None:
        """Make the file if it is missing. What goes wrong is logged; the workers then keep their old one."""
        try:
            account = privileges.find_account(self._user)
            if account is not None and self._file is not None and _is_out_of_reach(self._file, account):
                privileges.prepare_log(str(self._file), account)
        except (OSError, PrivilegeError) as error:
            logger.error("access_log.not_made", extra={"error": str(error)})  # noqa: TRY400 - no flaw of ours


def _is_out_of_reach(file: Path, account: Account) -> bool:
    """Whether the account can exchange none of the folders that lead to the file, nor add to the last one."""
    way = pairwise((file, *file.parents))
    return not any(_may_exchange(folder, below, account) for below, folder in way)


def _may_exchange(folder: Path, below: Path, account: Account) -> bool:
    status = folder.lstat()
    if status.st_uid == account.uid:
        return True  # it may give itself the right
    right = stat.S_IWGRP if status.st_gid in account.groups else stat.S_IWOTH
    if not status.st_mode & right:
        return False
    if not status.st_mode & stat.S_ISVTX or not below.exists():
        return True
    return below.lstat().st_uid == account.uid  # in a sticky folder (/tmp) each may only move what is its own
