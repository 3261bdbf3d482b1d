"""JSON that requests bring, and JSON that they are answered with."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sppo.reading import parse

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class RefusedRequest(ValueError):
    """A request that is not answered.

    Attributes:
        status: the status of HTTP that says why.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


async def json_object(request: Request, largest: int) -> dict[str, Any]:
    """The JSON object that a request brings.

    Args:
        request: the request.
        largest: the most bytes that are read.

    Raises:
        RefusedRequest: the body is larger, or no JSON object.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > largest:
            raise RefusedRequest(413, f"the body is larger than {largest:,} bytes; send less at once")
    try:
        body = parse(bytes(content))
    except ValueError as error:
        raise RefusedRequest(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusedRequest(400, f"the body must be a JSON object, not {json_type(body)}")
    return body


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def is_text(value: Any) -> bool:
    """Whether a value is a string of whole characters, which UTF-8 can hold."""
    return isinstance(value, str) and not _HALF_A_PAIR.search(value)


def problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says what is wrong."""
    return JSONResponse({"problem": text}, status_code=status, headers=headers)
