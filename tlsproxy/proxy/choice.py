"""What the choice for a ClientHello can be: a context, a refusal, or a certificate that is still being made.

Values. `ContextTable.choose` returns one, `TlsConnection` acts on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from tlsproxy.wire.clienthello import INTERNAL_ERROR, NO_APPLICATION_PROTOCOL, UNRECOGNIZED_NAME

if TYPE_CHECKING:
    from tlsproxy.proxy.sitetls import ServerContext
    from tlsproxy.proxy.waiting import Awaited


class Refused:
    """End the handshake with this alert. `is_said`: the log has what there is to say, with a limit of its own."""

    __slots__ = ("alert", "is_said", "reason")

    def __init__(self, alert: int, reason: str, *, is_said: bool = False) -> None:
        self.alert = alert
        self.reason = reason
        self.is_said = is_said

    def __repr__(self) -> str:
        return f"<Refused {self.alert} {self.reason}>"


Choice: TypeAlias = "ServerContext | Refused | Awaited"

UNKNOWN_NAME: Final = Refused(UNRECOGNIZED_NAME, "unrecognized name")
PENDING: Final = Refused(UNRECOGNIZED_NAME, "no certificate yet", is_said=True)
UNUSABLE: Final = Refused(INTERNAL_ERROR, "no usable certificate", is_said=True)
NO_CHALLENGE: Final = Refused(NO_APPLICATION_PROTOCOL, "no TLS-ALPN-01 challenge for this name")
NO_PROTOCOL: Final = Refused(NO_APPLICATION_PROTOCOL, "no common application protocol")
NOT_IN_TIME: Final = Refused(UNRECOGNIZED_NAME, "the certificate did not come in time")
TOO_MANY_WAIT: Final = Refused(INTERNAL_ERROR, "too many clients wait for certificates")
