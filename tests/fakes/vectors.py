"""The list of bad inputs as values: what each case sends, and which outcomes are safe.

`tests/data/bad_inputs.json` explains its own fields under `about`. A case is one connection; `raw` is latin-1 with
Python escapes and the macro `{{X*N}}` (X, N times).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BAD_INPUTS = Path(__file__).resolve().parent.parent / "data" / "bad_inputs.json"
_MACRO = re.compile(rb"\{\{(.+?)\*(\d+)\}\}", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """One entry. `accept` holds every safe outcome; `expect` is the one we aim for, `policy` where we choose."""

    id: str
    side: str
    raw: bytes
    expect: str
    accept: frozenset[str]
    max_backend_requests: int = 99
    must_see: tuple[bytes, ...] = ()
    must_not_see: tuple[bytes, ...] = ()
    client_must_see: tuple[bytes, ...] = ()
    client_must_not_see: tuple[bytes, ...] = ()
    conn_after: str = "any"
    layer: str = ""
    client_request: bytes = b""
    backend_action: str = ""
    fields: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def may_forward(self) -> bool:
        return bool(self.accept & {"forward", "forward-normalised"})


def decode(text: str) -> bytes:
    """Bytes of an escaped string, macros expanded."""
    raw = text.encode("ascii").decode("unicode_escape").encode("latin-1")
    return _MACRO.sub(lambda match: match[1] * int(match[2]), raw)


def load(path: Path = BAD_INPUTS) -> list[Case]:
    return [_case(entry) for entry in json.loads(path.read_text())["cases"]]


def _case(entry: dict[str, Any]) -> Case:
    def needles(name: str) -> tuple[bytes, ...]:
        # The file holds these as text; the only one beyond ASCII is a latin-1 header value.
        return tuple(text.lower().encode("latin-1") for text in entry.get(name, ()))

    return Case(
        id=entry["id"],
        side=entry["side"],
        raw=decode(entry["raw"]),
        expect=entry["expect"],
        accept=frozenset(entry["accept"]),
        max_backend_requests=entry.get("max_backend_requests", 99),
        must_see=needles("backend_must_see"),
        must_not_see=needles("backend_must_not_see"),
        client_must_see=needles("client_must_see"),
        client_must_not_see=needles("client_must_not_see"),
        conn_after=entry.get("conn_after", "any"),
        layer=entry.get("layer", ""),
        client_request=decode(entry.get("client_request", "")),
        backend_action=entry.get("backend_action", ""),
        fields=entry,
    )


def client_cases() -> list[Case]:
    return [case for case in load() if case.side == "client" and not case.layer]


def backend_cases() -> list[Case]:
    return [case for case in load() if case.side == "backend" and not case.layer]
