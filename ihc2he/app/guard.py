"""Who may talk to the page: this machine alone, or whoever has its token; and nobody through another web page."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE, SESSION = "ihc2he_token", "ihc2he_session"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def cookie_name(name: str, headers: Mapping[str, str]) -> str:
    """Return the name of a cookie with the port of the page, as browsers give the cookies of a host to all its ports.

    >>> cookie_name("session", {"host": "[::1]:8501"}), cookie_name("session", {"host": "server"})
    ('session_8501', 'session')
    """
    port = headers.get("host", "").rpartition(":")[2]
    return f"{name}_{port}" if port.isdecimal() else name


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("server")
    (True, True, False, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Refuses requests for another host or from another web page, and all without the token where one is needed.

    A page of a foreign host whose name leads to this machine has that name as Host; a form or script of another page
    has another Origin. Neither gets an answer.

    Args:
        app: that is guarded.
        host: at which the page is served.
        token: that every request needs; None: none, for a loopback address.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        self.app, self.token = app, token
        self.wild = host in ("0.0.0.0", "::")
        self.hosts = {host, "localhost", "127.0.0.1", "::1"} if is_loopback(host) else {host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self.wild and urlsplit(f"//{host}").hostname not in self.hosts:
            return PlainTextResponse(f"This page is not served as {host!r}.", 421)
        if _foreign(request.headers, host) and not (request.method == "GET" and request.url.path == "/"):
            return PlainTextResponse("Requests from other web pages are refused.", 403)
        cookie = cookie_name(COOKIE, request.headers)
        if self.token is None or _same(request.cookies.get(cookie, ""), self.token):
            return None
        if request.url.path == "/" and _same(request.query_params.get("token", ""), self.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie, self.token, httponly=True, samesite="lax")
            return answer
        return PlainTextResponse("Open the address that the program has printed; it contains a token.", 403)


class SessionCookie:
    """Gives a new session its cookie.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def with_cookie(message: Message) -> None:
            key = scope.get("state", {}).get("new_key")
            if message["type"] == "http.response.start" and key:
                cookie = f"{cookie_name(SESSION, Headers(scope=scope))}={key}; HttpOnly; SameSite=Lax; Path=/"
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        await self.app(scope, receive, with_cookie)


def _same(given: str, token: str) -> bool:
    """Return whether a token is right, in a time that does not tell how much of it is."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _foreign(headers: Mapping[str, str], host: str) -> bool:
    """Return whether another web page sent a request."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
