"""The two pages for people: runs and approvals at `/`, the API's description at `/docs`. They load nothing from
elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.routing import router

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_FILES = {
    "/": ("index.html", "text/html"),
    "/ui.css": ("ui.css", "text/css"),
    "/ui.js": ("ui.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}


def routes(gateway: Gateway) -> APIRouter:
    api = router("pages")
    for path, (name, media_type) in _FILES.items():
        _serve(api, path, name, media_type)
    return api


def _serve(api: APIRouter, path: str, name: str, media_type: str) -> None:
    @api.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(_text(name), media_type=media_type, headers=_HEADERS)


@cache
def _text(name: str) -> str:
    return files("agnt5_engine.gateway").joinpath("static", name).read_text()
