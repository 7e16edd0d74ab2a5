"""An application that says who may have a certificate, as one would write it; it redirects what is not https."""

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware

app = FastAPI()
app.add_middleware(HTTPSRedirectMiddleware)


@app.get("/may-have-certificate")
async def may_have_certificate(request: Request, domain: str, client_ip: str) -> Response:
    match domain.partition(".")[0]:
        case "shop":
            return Response()
        case "slow":
            await asyncio.sleep(30)
        case "moved":
            return RedirectResponse("https://example.com/yes")
        case "broken":
            return PlainTextResponse("no database", 500)
        case "echo":
            return PlainTextResponse(f"{client_ip} {request.url.query} {request.headers['host']}", 403)
        case "long":
            return PlainTextResponse("x" * 10_000, 404)
    return PlainTextResponse("no customer\nof ours", 404)
