"""Where in vLLM's stack of ASGI layers ours stands.

vLLM adds user middleware last, which makes it outermost: outside the API-key check, the CORS and
the request-id layers. There we would read and judge requests without a key, and what we answer
ourselves would leave without those layers' headers. So when the stack is built, our layer goes to
its inner end instead, between vLLM's layers and the routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.middleware.exceptions import ExceptionMiddleware

_MOST_LAYERS = 100


def put_innermost(stack: Any, wrap: Callable[[Any], Any]) -> tuple[Any, bool]:
    """``(application to call, whether ours is innermost)``; ``wrap(inner)`` makes our layer.

    ``stack`` is what the framework gave a middleware as its application. Where its inner end is
    not found (no framework, or another one), our layer stays outermost.
    """
    outer, layer = None, stack
    for _ in range(_MOST_LAYERS):
        if isinstance(layer, ExceptionMiddleware):
            ours = wrap(layer)
            if outer is None:
                return ours, True
            outer.app = ours
            return stack, True
        outer, layer = layer, getattr(layer, "app", None)
        if layer is None:
            break
    return wrap(stack), False
