"""Route templates ("/items/{item_id}") and the paths that fit them: read from an OpenAPI document, looked up. Pure.

Strategy: the templates of an application become a tree by segments; a path is looked up by walking down, a literal
segment before one with a parameter. Each node is visited at most once in a walk, so a look-up costs at most the size
of the application, whatever the path. Paths repeat, so results are remembered, within bounds.

Rule kept: what comes out is one of the application's own templates, never a part of a client's path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

MOST_TEMPLATES: Final = 1000
LONGEST_TEMPLATE: Final = 256
_MOST_SEGMENTS: Final = 32
_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 128
_NOT_TAKEN: Final = (404, 405)
# RFC 3986 3.3: what may stand in a segment as it is.
_SEGMENT: Final = "-._~!$&'()*+,;=:@"
_TEMPLATE_BYTES: Final = bytes(range(0x21, 0x7F)).translate(None, b'"\\')
OTHER: Final = "other"


class _Node:
    """The templates that go on from here. `mixed`: segments like "{name}.json", by what is before and behind."""

    __slots__ = ("ends", "literals", "mixed", "parameter", "rest")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.mixed: list[tuple[bytes, bytes, _Node]] = []
        self.parameter: _Node | None = None
        self.ends = ""  # the template that ends here
        self.rest = ""  # the template that ends in a parameter below: it may take more than a segment


class Templates:
    """The templates of one application. `base` is what its paths have in front; it is part of what is returned."""

    __slots__ = ("_base", "_memory", "_root", "count")

    def __init__(self, templates: Iterable[str], base: bytes = b"") -> None:
        self._base = base.rstrip(b"/")
        self._root = _Node()
        self._memory: dict[bytes, tuple[str, str]] = {}
        self.count = 0
        for template in templates:
            if self.count >= MOST_TEMPLATES:
                break
            self._add(template)

    def __repr__(self) -> str:
        return f"<Templates {self.count} under {self._base.decode('latin-1') or '/'}>"

    def find(self, path: bytes, status: int = 200) -> str:
        """The template that `path` (without query) fits, or `OTHER`.

        A parameter at the end may stand for several segments (`{file:path}`; the document does not tell which do): that
        is believed if the application took the request, which `status` tells.
        """
        found = self._memory.get(path)
        if found is None:
            found = self._look_up(path)
            if len(path) <= _LONGEST_REMEMBERED:
                if len(self._memory) >= _REMEMBERED:
                    self._memory.clear()
                self._memory[path] = found
        exact, loose = found
        return exact or (loose if loose and status not in _NOT_TAKEN else OTHER)

    def _look_up(self, path: bytes) -> tuple[str, str]:
        base = self._base
        if base and (path == base or path.startswith(base + b"/")):
            path = path[len(base) :]
        segments = path.split(b"/", _MOST_SEGMENTS + 1)
        exact = _walk(self._root, segments, 1) if len(segments) <= _MOST_SEGMENTS else ""
        return exact, "" if exact else _walk_loosely(self._root, segments, 1)

    def _add(self, template: str) -> None:
        shown = is_template(self._base + _quoted(template, "/{}"))
        segments = template.split("/")[1:]
        if not shown or len(segments) > _MOST_SEGMENTS:
            return
        self.count += 1
        node = self._root
        for segment in segments:
            above, node = node, _step(node, segment)
        node.ends = node.ends or shown
        if segments and segments[-1][:1] == "{" and segments[-1][-1:] == "}":
            above.rest = above.rest or shown


def _step(node: _Node, segment: str) -> _Node:
    """The node below for a segment of a template, made if it is not there."""
    if "{" not in segment or "}" not in segment:
        return node.literals.setdefault(_quoted(segment), _Node())
    before, _, rest = segment.partition("{")
    behind = rest.rpartition("}")[2]
    if not before and not behind:
        node.parameter = node.parameter or _Node()
        return node.parameter
    edges = _quoted(before), _quoted(behind)
    for known_before, known_behind, below in node.mixed:
        if (known_before, known_behind) == edges:
            return below
    below = _Node()
    node.mixed.append((*edges, below))
    return below


def _walk(node: _Node, segments: list[bytes], at: int) -> str:
    if at == len(segments):
        return node.ends
    segment = segments[at]
    below = node.literals.get(segment)
    if below is not None and (found := _walk(below, segments, at + 1)):
        return found
    if not segment:
        return ""  # a parameter takes at least one character
    for before, behind, mixed in node.mixed:
        fits = len(segment) > len(before) + len(behind) and segment.startswith(before) and segment.endswith(behind)
        if fits and (found := _walk(mixed, segments, at + 1)):
            return found
    return _walk(node.parameter, segments, at + 1) if node.parameter is not None else ""


def _walk_loosely(node: _Node, segments: list[bytes], at: int) -> str:
    """The deepest template on the way whose last parameter takes all that is left."""
    if at >= len(segments):
        return ""
    for below in (node.literals.get(segments[at]), node.parameter):
        if below is not None and (found := _walk_loosely(below, segments, at + 1)):
            return found
    return node.rest


def _quoted(text: str, more: str = "") -> bytes:
    """As a client writes it (RFC 3986 2.1)."""
    return quote(text, safe=_SEGMENT + more, errors="replace").encode()


def is_template(value: bytes) -> str:
    """`value` as text if it may be shown as a template: it begins with "/", is short, and has printable bytes only."""
    if value[:1] != b"/" or len(value) > LONGEST_TEMPLATE or value.translate(None, _TEMPLATE_BYTES):
        return ""
    return value.decode("ascii")


def read_openapi(document: Any, prefix: bytes, *, stripped: bool) -> Templates | None:
    """The templates of an OpenAPI document (3.x `paths`), None if it is none.

    `prefix` is the route's; with `stripped` the application does not see it. Else the application's paths have it
    already, or its `servers` name what comes before them.
    """
    paths = document.get("paths") if isinstance(document, Mapping) else None
    if not isinstance(paths, Mapping):
        return None
    named = [path for path in paths if isinstance(path, str) and path.startswith("/")]
    base = prefix if stripped else _root_of(document)
    return Templates(named, base)


def _root_of(document: Mapping[str, Any]) -> bytes:
    """The path of the first server: FastAPI writes its root path there."""
    servers = document.get("servers")
    first = servers[0] if isinstance(servers, list) and servers else None
    url = first.get("url") if isinstance(first, Mapping) else None
    if not isinstance(url, str) or len(url) > LONGEST_TEMPLATE:
        return b""
    try:
        path = urlsplit(url).path
    except ValueError:
        return b""
    return _quoted(path, "/%").rstrip(b"/") if path.startswith("/") else b""
