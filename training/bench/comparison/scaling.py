"""The arena's workloads at the order of an engine: long prompts, objectives near its full step.

What is hard for a tiny engine is nothing for a GPU, and the other way round. A workload that is
to say something about engines of every kind is therefore scaled to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lengthwise.data.arena.workloads import GpuScale
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.profile import EngineProfile

TYPICAL_REQUEST_TOKENS = 700
USUAL_BASE_S = 0.012


def full_batch_token_s(profile: EngineProfile) -> float:
    """Seconds a token takes a sequence of a full batch of typical requests."""
    kv = profile.capacity.kv_tokens
    n = min(profile.capacity.max_num_seqs, kv / TYPICAL_REQUEST_TOKENS)
    step_s = profile.scaled_step_time.step_s(0, n, min(kv, TYPICAL_REQUEST_TOKENS * n))
    accepted = 1.0 if profile.speculation is None else profile.speculation.accepted_tokens
    return step_s / accepted


def scale_to_engine(
    requests: Sequence[WorkloadRequest], scale: GpuScale, profile: EngineProfile
) -> list[WorkloadRequest]:
    """The requests as they are asked of this engine; the same where its profile is "fixed".

    Prompts are `scale.prompts` times longer, their text the same (`text_tokens` keeps its
    count); a TPOT objective becomes `scale.full_steps` times a token's time in a full batch;
    TTFT and e2e objectives grow with `scale.patience` and the root of the base step, where that
    is longer than usual.
    """
    if profile.scale == "fixed":
        return list(requests)
    patience = scale.patience * max(1.0, profile.scaled_step_time.base_s / USUAL_BASE_S) ** 0.5
    tpot_s = scale.full_steps * full_batch_token_s(profile)

    def objectives(slo: Slo) -> Slo:
        return replace(
            slo,
            ttft_s=None if slo.ttft_s is None else slo.ttft_s * patience,
            tpot_s=None if slo.tpot_s is None else tpot_s,
            e2e_s=None if slo.e2e_s is None else slo.e2e_s * patience,
        )

    def request(r: WorkloadRequest) -> WorkloadRequest:
        if scale.prompts == 1.0:
            return replace(r, slo=objectives(r.slo))
        return replace(
            r,
            slo=objectives(r.slo),
            prompt_tokens=round(scale.prompts * r.prompt_tokens),
            text_tokens=r.prompt_tokens if r.text_tokens is None else r.text_tokens,
        )

    return [request(r) for r in requests]
