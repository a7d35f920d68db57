"""Ill-formed values that neither vLLM's request classes nor its engine refuse as such.

    {"top_k": 36893488147419103232}      an integer that does not fit the engine's messages
    {"stop": "\\ud800"}                   half a character, which has no UTF-8
    {"structured_outputs": 7}            a validator of vLLM that fails with AttributeError

    {"vllm_xargs": {"gate_tau": true}}    vLLM's class makes the number 1 of it
    {"prompt": "\\ud800"}                 the tokenizer's error names neither field nor reason

Without this module the first three end in HTTP 500, the third closes the connection too, and the
fourth is answered with a threshold that nobody asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from email.message import Message
from http import HTTPStatus

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.utils import get_parameterless_sub_dependant, solve_dependencies
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve import create_error_response

from serving import grammars
from vllm_gate.params import given

logger = logging.getLogger(__name__)

# vLLM renders these to tokens first, and refuses there what it cannot take. They may be long.
RENDERED = frozenset({"prompt", "messages", "input", "previous_input_messages", "tokens"})
HALF = "has half a character (a lone surrogate), not UTF-8"
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # escaped, and as bytes; pairs too
INTEGERS = range(-(2**63), 2**64)  # as msgpack has them

# What a validator may raise beside ValueError and TypeError, which vLLM answers with 400 itself.
OTHER_ERRORS = (AttributeError, LookupError, AssertionError, RecursionError)


def check(request: object) -> None:
    """Look at a request of vLLM's before the engine gets it.

    Raises:
        ValueError: a value that the engine cannot take; the message begins with the field.
    """
    for name, value in _members(request):
        if name in RENDERED:
            continue
        for field, part in _parts(name, value):
            if isinstance(part, str):
                if _has_half(part):
                    raise ValueError(f"{field}: {HALF}")
            elif part not in INTEGERS:
                raise ValueError(f"{field}: integers must have at most 64 bits")


def _has_half(text: str) -> bool:
    """Whether a text has half of a surrogate pair."""
    return not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text)


def _members(value: object) -> list[tuple[str, object]]:
    """(name, value) of an object's fields."""
    return [
        (name, member)
        for name, member in (
            *vars(value).items(),
            *(getattr(value, "model_extra", None) or {}).items(),
        )
        if member is not None
    ]


def _parts(name: str, value: object) -> Iterator[tuple[str, str | int]]:
    """The strings and integers in a value, keys included, each with its field as `a.b`.

    Bodies are not deeper than a parser.
    """
    rest = [(name, value)]
    while rest:
        field, one = rest.pop()
        if isinstance(one, str):
            yield field, one
        elif isinstance(one, int):
            yield field, int(one)
        elif isinstance(one, dict):
            rest += [(field, key) for key in one]
            rest += [(f"{field}.{_shown(key)}", member) for key, member in one.items()]
        elif isinstance(one, list | tuple | set | frozenset):
            rest += [(field, member) for member in one]
        elif isinstance(one, BaseModel) or is_dataclass(one):
            rest += [(f"{field}.{key}", member) for key, member in _members(one)]


def _shown(key: object) -> str:
    """A key of the client's as a message can bear it: short, and not itself ill-formed."""
    return str(key).encode("ascii", "backslashreplace").decode()[:40]


async def answer(request: Request, error: Exception) -> JSONResponse:
    """400 where an error was raised while the request was read, else 500.

    Only what a client nested deeply exceeds Python's depth, also where vLLM reads the arguments of
    a tool call.
    """
    if isinstance(error, RecursionError):
        status, kind = HTTPStatus.BAD_REQUEST, "BadRequestError"
        text = "The request has a value that is nested too deeply."
    elif _while_reading(error):
        status, kind = HTTPStatus.BAD_REQUEST, "BadRequestError"
        text = f"The request has a value of a wrong type ({error})."
    else:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        status, kind, text = HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError", str(error)
    body = create_error_response(text, kind, status)
    return JSONResponse(body.model_dump(), status_code=status)


def _while_reading(error: Exception) -> bool:
    """Whether FastAPI was turning the body into an object; the endpoint had not begun."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is solve_dependencies.__code__:
            return True
        trace = trace.tb_next
    return False


def _is_json(content_type: str) -> bool:
    """Whether FastAPI takes a body of this type for JSON."""
    message = Message()
    message["content-type"] = content_type
    main, sub = message.get_content_maintype(), message.get_content_subtype()
    return main == "application" and (sub == "json" or sub.endswith("+json"))


async def look_at_body(request: Request) -> None:
    """Raise HTTPException where the gate's arguments, texts, schemas or grammars are ill-formed."""
    if not _is_json(request.headers.get("content-type", "")):
        return
    raw = await request.body()  # FastAPI has read it already
    if not raw:  # openai's client names the type where it sends nothing
        return
    body = await request.json()
    if not isinstance(body, dict):
        return
    if _HALVES.search(raw) or grammars.ZERO in raw:
        for name in RENDERED & body.keys():
            for field, part in _parts(name, body[name]):
                if isinstance(part, str) and _has_half(part):
                    raise HTTPException(400, f"{field}: {HALF}")
    try:
        grammars.check(body, raw)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    arguments = body.get("vllm_xargs")
    if not isinstance(arguments, dict):
        return
    for name in given(arguments):
        if isinstance(arguments[name], bool):
            raise HTTPException(400, f"{name}: must be a number, not true or false")


def install(app: FastAPI) -> None:
    """Have the routes that `app` has so far look at bodies, and errors of validators answered."""
    for kind in OTHER_ERRORS:
        app.add_exception_handler(kind, answer)
    for route in app.routes:
        if isinstance(route, APIRoute) and "POST" in route.methods:
            depends = Depends(look_at_body)
            route.dependant.dependencies.insert(
                0, get_parameterless_sub_dependant(depends=depends, path=route.path_format)
            )
