"""An application that has customers with names of their own, and is asked which of them may have a certificate."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI(title="customers")
asked: list[tuple[str, str]] = []


@app.get("/may-have-certificate")
def may_have_certificate(domain: str, client_ip: str) -> PlainTextResponse:
    """Say yes to whatever has "shop" in its name."""
    asked.append((domain, client_ip))
    if "shop" in domain:
        return PlainTextResponse("a customer")
    return PlainTextResponse("never heard of it", status_code=404)


@app.get("/asked")
def show_asked() -> list[tuple[str, str]]:
    """Tell who was asked for so far, and by which clients."""
    return asked


@app.get("/hello")
def hello() -> PlainTextResponse:
    return PlainTextResponse("hello")
