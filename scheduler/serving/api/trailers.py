"""Trailers of a chunked body are no headers.

uvicorn on httptools puts what a client sends behind its body into the list of the request's
headers, which a gateway in front has not seen: a tenant, an objective, a key of the server's.
On h11 it does not.
"""

from __future__ import annotations

import functools
from typing import Any

_WRAPPED = "lengthwise_wrapped"
_HOOK = "on_headers_complete"


def leave_out_trailers() -> None:
    """Have connections made from now on keep trailers apart from headers, for whoever reads them.

    Nothing is changed where the server has no httptools, or reads requests in another way.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return
    complete = getattr(HttpToolsProtocol, _HOOK, None)
    if complete is None or getattr(complete, _WRAPPED, False):
        return

    @functools.wraps(complete)
    def on_headers_complete(protocol: Any) -> None:
        complete(protocol)
        # the request keeps the list that it has; what follows goes to another
        protocol.headers = list(getattr(protocol, "headers", ()))

    setattr(on_headers_complete, _WRAPPED, True)
    setattr(HttpToolsProtocol, _HOOK, on_headers_complete)
