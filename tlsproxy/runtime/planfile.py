"""The file that keeps what operators have said about backends and sites, over restarts: in the store's directory.

Knows the file, its form and how it gets there; not what an entry means. The supervisor writes it, perhaps as root, in a
directory of `server.user`: no link is followed, the file is the user's (store/folder.py), and it is there whole or not
at all. Rule: what is in it was perhaps written by somebody else; what can't be read is said, and is no state. A store
that is no directory keeps nothing: what was said is lost with the supervisor, and that is said too.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from tlsproxy.errors import StoreError
from tlsproxy.runtime.messages import BackendPlan
from tlsproxy.settings import fields
from tlsproxy.store.directory import PLAN, explain, make_folder, open_folder, open_lock, replace_file

logger = logging.getLogger(__name__)

NAME = "backends.json"
FORM = 1
MOST = 4 * 1024 * 1024
"""Bytes; a hundred thousand drained backends."""

_NAMES = ("drained", "swapped", "paused", "key", "instead_of")
_SHAPE = TypeAdapter(BackendPlan)
_ROUTES: TypeAdapter[dict[str, tuple[str, ...]]] = TypeAdapter(dict[str, fields.Backends])
_URLS: TypeAdapter[tuple[str, ...]] = TypeAdapter(fields.Backends)


class PlanFile:
    """Where the state of one proxy is kept. Blocking: `save` waits for the disk, and for another writer."""

    def __init__(self, store_url: str) -> None:
        parts = urlsplit(store_url)
        self._directory = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._store_url = store_url

    def __repr__(self) -> str:
        return f"<PlanFile in {self._store_url}>"

    @property
    def path(self) -> Path | None:
        return self._directory and self._directory / PLAN / NAME

    def load(self) -> BackendPlan:
        """Return what was saved; nothing, if there is nothing that can be read."""
        try:
            content = self._read()
            return BackendPlan() if content is None else decode(content)
        except (OSError, ValueError, StoreError) as error:
            logger.warning("backends.state_unreadable", extra={"file": str(self.path), "error": str(error)})
            return BackendPlan()

    def save(self, plan: BackendPlan) -> None:
        """Keep it. Raises StoreError: what was kept before is kept still, then."""
        if self._directory is None:
            raise StoreError(f"store.url {self._store_url} keeps nothing: this is forgotten when the proxy ends")
        try:
            lock = open_lock(self._directory)
            try:
                with make_folder(self._directory, PLAN) as folder:
                    replace_file(self._directory, folder, NAME, encode(plan))
            finally:
                os.close(lock)
        except OSError as error:
            raise StoreError(explain(self._directory, "written", error)) from error

    def _read(self) -> bytes | None:
        if self._directory is None:
            return None
        with suppress(FileNotFoundError), open_folder(self._directory, PLAN) as folder:
            content = folder.read(NAME, most=MOST)
            if content is not None and len(content) > MOST:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return content
        return None


def encode(plan: BackendPlan) -> bytes:
    """One JSON object, for people too."""
    return json.dumps({"form": FORM, **{name: getattr(plan, name) for name in _NAMES}}, indent=1).encode() + b"\n"


def decode(content: bytes) -> BackendPlan:
    """Raises ValueError: it is not what `encode` writes. The words of it that are ours repeat no secret."""
    try:
        found: Any = json.loads(content)
        if not isinstance(found, dict) or found.get("form") != FORM:
            raise ValueError("it is not of a form that this version knows")
        plan = _SHAPE.validate_python({name: found[name] for name in _NAMES})
        _URLS.validate_python(plan.drained)
        _ROUTES.validate_python(plan.swapped)
        _ROUTES.validate_python(plan.instead_of)
        bytes.fromhex(plan.key)
    except ValidationError as error:
        raise ValueError(f"{error.error_count()} of its values are wrong") from None
    except (KeyError, RecursionError) as error:
        raise ValueError("it is not complete") from error
    else:
        return plan
