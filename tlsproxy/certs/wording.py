"""Says a failure in one sentence to the person on call, and what to do. PURE.

Knows: how Let's Encrypt, Pebble and others word what they have seen. Does not know: what a failure means for the next
attempt (problems.py does). Rule: the sentence names the host, what happened, and ends with what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlsproxy.certs.problems import AcmeFailure


def sentence(failure: AcmeFailure) -> str:
    """Return what happened, why, and what to do."""
    return f"{failure.identifier or failure.directory}: {failure.detail or failure.type or failure.kind}"


def address_in(detail: str) -> str:
    """Return the IP address that the CA says it has tried, in canonical form, or ""."""
    return ""
