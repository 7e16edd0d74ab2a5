"""What CAA records say about a CA (RFC 8659, and the parameters of RFC 8657). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

_CRITICAL = 128
_KNOWN = frozenset({"issue", "issuewild", "iodef", "issuemail", "contactemail", "contactphone"})


@dataclass(frozen=True, slots=True)
class CaaRecord:
    flags: int
    tag: str
    value: str

    @classmethod
    def of(cls, rdata: Any) -> Self:
        """Read a record of dnspython."""
        return cls(rdata.flags, rdata.tag.decode("ascii", "replace").lower(), rdata.value.decode("ascii", "replace"))

    def __str__(self) -> str:
        return f'{self.flags} {self.tag} "{self.value}"'

    @property
    def issuer(self) -> str:
        return self.value.partition(";")[0].strip().lower()

    @property
    def parameters(self) -> dict[str, str]:
        pairs = [part.partition("=") for part in self.value.split(";")[1:]]
        return {name.strip().lower(): value.strip() for name, _, value in pairs if name.strip()}


@dataclass(frozen=True, slots=True)
class Decision:
    """`allowed` is None where it depends on what is not known here. `tag` is the one to add."""

    allowed: bool | None
    why: str = ""
    tag: str = "issue"


def decide(
    records: Sequence[CaaRecord], identities: Sequence[str], challenges: Sequence[str], *, is_wildcard: bool
) -> Decision:
    """Tell whether a CA with these names may certify, if it validates with one of `challenges`."""
    stranger = next((each for each in records if each.flags & _CRITICAL and each.tag not in _KNOWN), None)
    if stranger:
        return Decision(None, f'the critical record "{stranger.tag}" may keep CAs off that do not know it')
    wild = [each for each in records if each.tag == "issuewild"] if is_wildcard else []
    tag = "issuewild" if wild else "issue"
    relevant = wild or [each for each in records if each.tag == "issue"]
    if not relevant:
        return Decision(True)
    ours = [each for each in relevant if each.issuer in identities]
    if not ours:
        others = ", ".join(dict.fromkeys(each.issuer or "nobody" for each in relevant))
        return Decision(False, f"the records allow {others}, not {identities[0]}", tag)
    return _with_parameters(ours, challenges, tag)


def _with_parameters(ours: Sequence[CaaRecord], challenges: Sequence[str], tag: str) -> Decision:
    for each in ours:
        methods = each.parameters.get("validationmethods")
        allowed = methods is None or bool({word.strip() for word in methods.split(",")}.intersection(challenges))
        if allowed and "accounturi" not in each.parameters:
            return Decision(True)
    if any("accounturi" in each.parameters for each in ours):
        return Decision(None, "a record names one account of the CA (accounturi); compare it with that of this proxy")
    return Decision(False, f"the records allow other challenges than {', '.join(challenges)} (validationmethods)", tag)
