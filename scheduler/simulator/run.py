"""Play a workload against a policy on the simulated engine."""

from __future__ import annotations

from dataclasses import replace

from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.guards.admission import AdmissionControl
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.instance import Course, PlanCost, SimInstance
from lengthwise.scheduler.simulator.opening_estimates import OpeningEstimates
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload


def _own_objectives(workload: SimWorkload) -> SimWorkload:
    """The workload with objectives that may be taken from it: what the policy is told."""
    return replace(
        workload,
        ttft_s=workload.ttft_s.copy(),
        tpot_s=workload.tpot_s.copy(),
        e2e_s=workload.e2e_s.copy(),
    )


def check_memory(workload: SimWorkload, profile: EngineProfile) -> None:
    """ValueError where a request alone needs more than the engine's KV memory."""
    total = workload.prompt_tokens + workload.output_tokens
    if len(workload) and total.max() > profile.capacity.kv_tokens:
        raise ValueError(
            f"a request needs {total.max()} tokens of KV cache, "
            f"the profile has {profile.capacity.kv_tokens}"
        )


def simulate(
    workload: SimWorkload,
    policy: Policy,
    profile: EngineProfile,
    *,
    max_wait_s: float = MAX_WAIT_S,
    plan_cost: PlanCost = "free",
    plan_share: float = 0.1,
    fairness: TenantFairness | None = None,
    admission: AdmissionControl | None = None,
    admission_policy: Policy | None = None,
    believed: EngineProfile | None = None,
    openings: OpeningEstimates | None = None,
) -> SimResult:
    """Serve the whole workload; deterministic when the policy is and ``plan_cost`` is "free".

    "free" paces plans by the policy's nominal time and charges nothing; "measured" paces by
    the time each plan took and delays the engine by it. Until the next plan newcomers stand at
    the back of the queue, requests the engine preempted at its front. ``admission`` judges
    newcomers by the orders of ``admission_policy``, another instance of the policy, since
    policies remember. ``believed`` is the profile the policy is told, where it is not the true one.
    ``openings`` replace the lengths that plans go by once answers have begun; they are no reason
    to plan.
    """
    check_memory(workload, profile)
    known = None if admission is None else _own_objectives(workload)
    course = Course(workload, known, openings)
    instance = SimInstance(
        course,
        policy,
        profile,
        max_wait_s=max_wait_s,
        plan_cost=plan_cost,
        plan_share=plan_share,
        fairness=fairness,
        admission=admission,
        admission_policy=admission_policy,
        believed=believed,
    )
    for row, at_s in enumerate(workload.arrival_s.tolist()):
        instance.offer(row, at_s)
    instance.advance(float("inf"))
    times, clock = course.times, instance.clock
    return SimResult(
        admitted_s=times[:, e.ADMITTED],
        first_token_s=times[:, e.FIRST],
        finish_s=times[:, e.FINISH],
        output_tokens=course.state[:, e.GENERATED],
        plan_s=instance.plan_s,
        queue_len=instance.queue_len,
        preemptions=int(clock[e.PREEMPTIONS]),
        yields=instance.yields,
        steps=int(clock[e.STEPS]),
        prefilled_tokens=int(clock[e.PREFILLED]),
        kv_peak_tokens=int(clock[e.KV_PEAK]),
        end_s=float(clock[e.NOW]),
        cached_tokens=int(clock[e.CACHED]),
        actions=tuple(instance.actions),
    )
