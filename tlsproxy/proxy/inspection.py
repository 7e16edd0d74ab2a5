"""What is looked at in the answers of a route, and done about it: redirects back to http, the template of the path.

Strategy: one object a route, made at start. `answered` is called for every answer of a route that wants templates, else
for redirects only. A template is believed from the application itself (TLSProxyMiddleware) if there is a secret between
us, because without one anybody's application may say anything; else it is looked up in its OpenAPI document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tlsproxy.wire.templates import OTHER, is_template

if TYPE_CHECKING:
    from tlsproxy.proxy.downgrade import Downgrades
    from tlsproxy.proxy.record import Record
    from tlsproxy.proxy.templates import TemplateSource
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import ResponseHead

_MOST_TEMPLATES: Final = 1000  # of a route; a middleware that has gone mad must not fill the memory


def answered(exchange: Record, head: ResponseHead, fields: Fields) -> Fields:
    """The fields of an answer for the client: the inspector of its route has seen it."""
    inspector: Inspector | None = getattr(exchange.forward and exchange.forward.route, "inspector", None)
    return fields if inspector is None else inspector.answered(exchange, head, fields)


class Inspector:
    """See the module's text. `source` is None if the route wants no templates; `believes`: there is a secret.

    Mutable state: `_told` (templates that the application has named, as text).
    """

    __slots__ = ("_believes", "_downgrades", "_repairs", "_told", "source")

    def __init__(self, downgrades: Downgrades, source: TemplateSource | None, *, believes: bool, repairs: bool) -> None:
        self._downgrades = downgrades
        self.source = source
        self._believes = believes and source is not None
        self._repairs = repairs
        self._told: dict[bytes, str] = {}

    def answered(self, exchange: Record, head: ResponseHead, fields: Fields, seen_as: str = "") -> Fields:
        """The fields for the client. `seen_as` is our address on the connection to the backend."""
        if 300 <= head.status < 400 and exchange.info.scheme == "https":
            fields = self._downgrades.look(exchange, fields, head.server, repair=self._repairs, seen_as=seen_as)
        source = self.source
        if source is None:
            return fields
        if head.template and self._believes:
            exchange.template = self._told.get(head.template) or self._learn(head.template)
        elif self._told:
            exchange.template = OTHER  # who names its routes took none
        else:
            exchange.template = source.find(exchange, head)
        return fields

    def _learn(self, said: bytes) -> str:
        template = is_template(said)
        if not template or len(self._told) >= _MOST_TEMPLATES:
            return OTHER
        self._told[said] = template
        return template
