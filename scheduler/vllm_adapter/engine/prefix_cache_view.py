"""vLLM's prefix cache, read without a trace.

vLLM's own lookup walks every block of a hit, and in some versions counts itself in the statistics.
Here the blocks are asked for by their hashes, which touches neither counters nor the order of
eviction. Blocks are evicted from a prompt's end, so the cached ones are a beginning, and where it
ends is found by halving.
"""

from __future__ import annotations

from typing import Any


class PrefixCacheView:
    """Cached tokens of requests; ``manager`` is vLLM's KV cache manager, ``block_tokens`` a block.

    ``usable`` is False where this way of asking would not be right: no prefix cache, several KV
    groups (windows, state-space layers), or hashes finer than blocks.
    """

    def __init__(
        self, manager: Any, groups: int, block_tokens: int, hash_block_tokens: int, drop_last: bool
    ) -> None:
        self._manager = manager
        self._block_tokens = block_tokens
        self._drop_last = drop_last  # a drafting head needs the last block computed anew
        self._pool = getattr(manager, "block_pool", None)
        self.usable = (
            bool(getattr(manager, "enable_caching", False))
            and groups == 1
            and block_tokens == hash_block_tokens
            and hasattr(self._pool, "get_cached_block")
        )

    def cached_tokens(self, request: Any) -> int:
        """Tokens of the request's beginning that it would not have to compute if admitted now."""
        if getattr(request, "skip_reading_prefix_cache", False):
            return 0
        hashes = request.block_hashes
        # The last token is always computed: its logits are needed.
        most = min(len(hashes), (int(request.num_tokens) - 1) // self._block_tokens)
        assert self._pool is not None
        found, missing = 0, most + 1
        while missing - found > 1:
            middle = (found + missing) // 2
            if self._pool.get_cached_block(hashes[middle - 1], [0]):
                found = middle
            else:
                missing = middle
        if self._drop_last and found:
            found -= 1
        return found * self._block_tokens
