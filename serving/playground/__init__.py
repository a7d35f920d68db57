"""GET /gate: a page that shows base, adapter and gated answers side by side, token by token.

Plain files from `static/`, read once at import; the page asks the server's own public API
for everything else. It needs no key itself, what it calls does.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

PATH = "/gate"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Scripts, styles and requests of this origin alone; nothing inline, no frame around the page.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class File(NamedTuple):
    """One file of the page."""

    body: bytes
    media_type: str


def _read(folder: Path) -> dict[str, File]:
    """All files of the page by name; a request can name these and nothing else."""
    return {
        file.name: File(file.read_bytes(), MEDIA_TYPES[file.suffix])
        for file in sorted(folder.iterdir())
        if file.suffix in MEDIA_TYPES
    }


FILES = _read(Path(__file__).with_name("static"))
PATHS = frozenset(
    {PATH, f"{PATH}/", *(f"{PATH}/{name}" for name in FILES)}
)  # open to those without a key

router = APIRouter(include_in_schema=False)


@router.api_route(PATH, methods=["GET", "HEAD"])
@router.api_route(PATH + "/{name:path}", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """The page or one of its files.

    Raises:
        HTTPException: 404, no such file.
    """
    name = request.path_params.get("name", "index.html")
    if not name:
        return RedirectResponse("../gate")  # relative: a proxy may have put a prefix before it
    file = FILES.get(name)
    if file is None:
        raise HTTPException(404, "The page has no such file.")
    return Response(file.body, media_type=file.media_type, headers=HEADERS)
