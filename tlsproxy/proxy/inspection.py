"""What is looked at in the answers of a route, and done about it: redirects back to http, the template of the path.

Strategy: one object a route, made at start; what few routes need is made when it is needed. It is shown every answer of
a route that wants templates, else redirects only. A template is believed from the application itself
(TLSProxyMiddleware) if there is a secret between us, because without one nobody has said that it means us; else it is
looked up in the application's OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy.downgrade import Downgrades
from tlsproxy.proxy.templates import TemplateSource
from tlsproxy.wire.templates import OTHER, Templates, is_template

if TYPE_CHECKING:
    from tlsproxy import settings as configuration
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.record import Record
    from tlsproxy.proxy.router import Route
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.forwarding import Options
    from tlsproxy.wire.messages import ResponseHead

_SWITCHED: Final = 101
_MOST_TEMPLATES: Final = 1000  # of a route; a middleware that has gone mad must not fill the memory


def name_unanswered(exchange: Record) -> None:
    """Give a request that no backend has answered its template: which endpoints time out is worth knowing."""
    inspector = exchange.forward.route.inspector if exchange.forward is not None else None
    if inspector is not None:
        inspector.unanswered(exchange)


class Inspection:
    """What the inspectors of a worker share. `count` is told the site of each redirect back to http."""

    def __init__(self, count: Callable[[str], None], options: Options) -> None:
        self.downgrades = Downgrades(count, options.trust)
        self.options = options
        self._sources: list[TemplateSource] = []

    def watch(self, route: Route, configured: configuration.Route) -> Route:
        """Give `route` its inspector."""
        route.inspector = Inspector(self, repairs=configured.repair_redirects, names=configured.templates)
        route.inspects = configured.templates
        return route

    def make_source(self, route: Route) -> TemplateSource:
        source = TemplateSource(route.prefix, self.options, stripped=route.strip)
        self._sources.append(source)
        return source

    def close(self) -> None:
        """The worker leaves."""
        for source in self._sources:
            source.close()


class Inspector:
    """See the module's text.

    Mutable state: `_told` (templates that the application has named, as text) and `_table` (made of them); `_source`
    (made when it is needed).
    """

    __slots__ = ("_inspection", "_names", "_repairs", "_source", "_table", "_told")

    def __init__(self, inspection: Inspection, *, repairs: bool, names: bool) -> None:
        self._inspection = inspection
        self._repairs = repairs
        self._names = names
        self._told: dict[bytes, str] | None = None
        self._table: Templates | None = None
        self._source: TemplateSource | None = None

    def answered(
        self, exchange: Record, head: ResponseHead, fields: Fields, stream: BackendStream | None = None
    ) -> Fields:
        """The fields for the client; what is found besides goes into the record."""
        if 300 <= head.status < 400 and exchange.info.scheme == "https":
            look = self._inspection.downgrades.look
            fields = look(exchange, fields, head.server, stream, repair=self._repairs)
        if not self._names:
            return fields
        if head.template and self._inspection.options.secret:
            told = self._told
            exchange.template = (told and told.get(head.template)) or self._learn(head.template)
        elif self._told:
            # Who names its routes took none. But granian 2.8 passes no header of a WebSocket's acceptance on.
            exchange.template = OTHER if head.status != _SWITCHED else ""
        else:
            source = self._source or self._find_source(exchange)
            exchange.template = source.find(exchange, head)
        return fields

    def unanswered(self, exchange: Record) -> None:
        """Name a request by what is known already."""
        known = self._table
        if known is None and self._told:
            known = self._table = Templates(self._told.values())
        elif known is None and self._source is not None:
            known = self._source.known
        if known is not None:
            exchange.template = known.find(exchange.head.target.partition(b"?")[0], exchange.status)

    def _learn(self, said: bytes) -> str:
        if self._told is None:
            self._told = {}
        template = is_template(said)
        if not template or len(self._told) >= _MOST_TEMPLATES:
            return OTHER
        self._told[said] = template
        self._table = None
        return template

    def _find_source(self, exchange: Record) -> TemplateSource:
        assert exchange.forward is not None  # noqa: S101  # it was forwarded, or nothing would have been answered
        self._source = self._inspection.make_source(exchange.forward.route)
        return self._source
