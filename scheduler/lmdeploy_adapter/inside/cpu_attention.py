"""Paged attention on a CPU for LMDeploy's PyTorch engine, in plain torch.

LMDeploy's ``default`` backend has every operator of a Llama but this one. Keys and values lie in
``(blocks, block_size, kv_heads, head_dim)``; they are views with strides of their own, so rows are
read and written by index. What is not computed here (sliding windows, ALiBi, soft caps, sinks,
quantised caches, latent attention) is refused when the model is built, or at the first step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.backends.attention import (
    AttentionImpl,
    AttentionMetadata,
    PagedAttentionBuildSpec,
)
from lmdeploy.pytorch.backends.default import DefaultOpsBackend
from torch.nn.functional import scaled_dot_product_attention

REFUSED = ("alibi", "sliding_window", "logit_softcapping", "use_flash_mla", "mla_index_topk",
           "learnable_sink")  # fmt: skip


class CpuAttention(AttentionImpl):
    """Writes a step's keys and values into the cache and attends to it."""

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        k_cache: Any,
        v_cache: Any,
        attn_metadata: Any,
        k_scales_zeros: Any = None,
        v_scales_zeros: Any = None,
        learnable_sink: Any = None,
        nsa_indices: Any = None,
        inplace: bool = False,
    ) -> Any:
        """Outputs ``(tokens, heads, v_head_size)`` of ``query (tokens, heads, head_size)``."""
        given = {"k_scales_zeros": k_scales_zeros, "learnable_sink": learnable_sink}
        if wrong := [name for name, tensor in given.items() if tensor is not None]:
            raise NotImplementedError(f"the CPU device does not compute {wrong[0]}")
        k_cache.index_put_(attn_metadata.slots, key)
        v_cache.index_put_(attn_metadata.slots, value)
        if attn_metadata.is_decoding:
            return self._decode(query, k_cache, v_cache, attn_metadata)
        return self._prefill(query, k_cache, v_cache, attn_metadata)

    def _decode(self, query: Any, k_cache: Any, v_cache: Any, meta: Any) -> Any:
        """One token a sequence, all in one call, padded to the longest context."""
        batch, kv_heads = query.shape[0], k_cache.shape[-2]

        def gathered(cache: Any) -> Any:
            rows = cache.index_select(0, meta.blocks)
            rows = rows.reshape(batch, -1, kv_heads, cache.shape[-1])
            return rows[:, : meta.longest].transpose(1, 2)

        grouped = query.view(batch, kv_heads, -1, query.shape[-1])
        attended = scaled_dot_product_attention(
            grouped, gathered(k_cache), gathered(v_cache), attn_mask=meta.mask, scale=self.scale
        )
        return attended.reshape(batch, -1, self.v_head_size)

    def _prefill(self, query: Any, k_cache: Any, v_cache: Any, meta: Any) -> Any:
        """A prompt, or a chunk of one, after another; a chunk sees what was computed before it."""
        out = query.new_empty((*query.shape[:-1], self.v_head_size))
        group, at = query.shape[-2] // k_cache.shape[-2], 0
        for (new, total), rows in zip(meta.lengths, meta.rows, strict=True):
            keys, values = (
                cache[rows].transpose(0, 1)[None].repeat_interleave(group, 1)
                for cache in (k_cache, v_cache)
            )
            asked = query[at : at + new].transpose(0, 1)[None]
            whole = new == total
            mask = None if whole else torch.ones(new, total, dtype=torch.bool).tril(total - new)
            attended = scaled_dot_product_attention(
                asked, keys, values, attn_mask=mask, is_causal=whole, scale=self.scale
            )
            out[at : at + new] = attended[0].transpose(0, 1)
            at += new
        return out


class CpuOpsBackend(DefaultOpsBackend):
    """The default backend, and attention."""

    @staticmethod
    def get_name() -> str:
        """Its name in messages."""
        return "cpu"

    @classmethod
    def build_op(cls, spec: Any, *, enable_deterministic: bool = False) -> Any:
        """The operator for a specification; NotImplementedError for attention of another kind."""
        if not isinstance(spec, PagedAttentionBuildSpec):
            return super().build_op(spec, enable_deterministic=enable_deterministic)
        for name in REFUSED:
            value = getattr(spec, name)
            if value not in (None, False, 0, 0.0, -1, (-1, -1)):
                raise NotImplementedError(f"the CPU device has no attention with {name} {value!r}")
        if not spec.causal:
            raise NotImplementedError("the CPU device has causal attention only")
        return CpuAttention(
            num_heads=spec.num_heads,
            head_size=spec.head_dim,
            scale=spec.scale,
            num_kv_heads=spec.num_kv_heads,
            v_head_size=spec.v_head_dim,
            causal=True,
        )

    @staticmethod
    def get_attention_metadata_cls() -> type[AttentionMetadata]:
        """What a step carries for attention."""
        return cast(type[AttentionMetadata], AttentionMetadata)

    @classmethod
    def update_step_context(cls, step_context: Any) -> Any:
        """Where the step's tokens go in the cache, and what each of them attends to."""
        cache = step_context.cache_config
        if cache.quant_policy not in (0, QuantPolicy.NONE):
            raise NotImplementedError(f"the CPU device has no {cache.quant_policy} cache")
        block, offsets = cache.block_size, step_context.block_offsets.long()
        q_seqlens, kv_seqlens = step_context.q_seqlens, step_context.kv_seqlens
        meta = AttentionMetadata(
            step_context.is_decoding,
            step_context.block_offsets,
            q_start_loc=step_context.q_start_loc,
            q_seqlens=q_seqlens,
            kv_seqlens=kv_seqlens,
        )
        if meta.is_decoding:
            last = kv_seqlens - 1
            meta.slots = (offsets.gather(1, (last // block)[:, None])[:, 0], last % block)
            meta.longest = int(kv_seqlens.max())
            meta.blocks = offsets[:, : -(-meta.longest // block)].reshape(-1)
            position = torch.arange(meta.longest)
            meta.mask = (position[None] < kv_seqlens[:, None])[:, None, None]
        else:
            meta.lengths = list(zip(q_seqlens.tolist(), kv_seqlens.tolist(), strict=True))
            meta.rows = []
            for sequence, (_, total) in enumerate(meta.lengths):
                position = torch.arange(total)
                meta.rows.append((offsets[sequence, position // block], position % block))
            new = [
                tuple(part[total - count :] for part in rows)
                for (count, total), rows in zip(meta.lengths, meta.rows, strict=True)
            ]
            meta.slots = tuple(torch.cat(parts) for parts in zip(*new, strict=True))
        step_context.attn_metadata = meta
        return step_context

    @staticmethod
    def device_count() -> int:
        """There is one."""
        return 1
