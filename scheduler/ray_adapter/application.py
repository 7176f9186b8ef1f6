"""The Ray Serve application: front and instances, from plain values.

`build` is what a Serve config file names (``import_path``), with `FleetOptions` as its ``args``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.settings import first_fault, make_settings
from lengthwise.scheduler.vllm_adapter.vllm_config import SCHEDULER_CLASS

FRONT = "lengthwise-front"
_NO_LIMIT = 100_000  # of requests at an instance: who waits, waits in the engine's queue, planned


class FleetOptions(BaseModel):
    """What is served, by how many instances.

    ``model_id`` is the name clients use, ``model`` where the engine finds it. ``settings`` are
    `ServerSettings`; their paths must exist on every node. ``engine_kwargs`` are vLLM's.
    ``autoscaling`` is Ray Serve's ``autoscaling_config``, in place of ``instances``.
    ``accelerator`` is "cpu", or null for GPUs. ``llm_config`` is laid over Ray's ``LLMConfig``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_id: str = Field(min_length=1)
    model: str = Field(min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    instances: int = Field(default=1, ge=1)
    autoscaling: dict[str, Any] | None = None
    instances_per_node: int = Field(default=1, ge=1)
    accelerator: str | None = None
    api_keys: list[str] = Field(default_factory=list)
    stats_period_s: float = Field(default=0.2, gt=0)
    llm_config: dict[str, Any] = Field(default_factory=dict)


def make_options(values: Mapping[str, Any]) -> FleetOptions:
    """Checked options; InputError names the key, the rule and the value."""
    try:
        options = FleetOptions.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"fleet option {first_fault(error)}") from error
    make_settings(options.settings)
    return options


def build(args: Mapping[str, Any]) -> Any:
    """The Serve application of these `FleetOptions`."""
    from ray import serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from lengthwise.scheduler.ray_adapter.fleet_front import FrontDeployment
    from lengthwise.scheduler.ray_adapter.replica import LengthwiseServer
    from lengthwise.scheduler.ray_adapter.request_router import LengthwiseRouter
    from lengthwise.scheduler.serving.settings import NO_ROUTER

    options = make_options(args)
    settings = make_settings(options.settings)
    plain = settings.model_dump(mode="json")
    deployment: dict[str, Any] = {"max_ongoing_requests": _NO_LIMIT}
    if options.autoscaling is None:
        deployment["num_replicas"] = options.instances
    else:
        deployment["autoscaling_config"] = options.autoscaling
    if settings.router != NO_ROUTER:
        deployment["request_router_config"] = {
            "request_router_class": LengthwiseRouter,
            "request_router_kwargs": {"settings": plain},
            "request_routing_stats_period_s": options.stats_period_s,
        }
    values: dict[str, Any] = {
        "model_loading_config": {"model_id": options.model_id, "model_source": options.model},
        "server_cls": LengthwiseServer,
        "log_engine_metrics": False,
        "engine_kwargs": {"scheduler_cls": SCHEDULER_CLASS, **options.engine_kwargs},
        "deployment_config": deployment,
    }
    if options.accelerator is not None:
        values["accelerator_config"] = {"kind": options.accelerator}
    values |= options.llm_config
    instances = build_llm_deployment(
        LLMConfig(**values),
        bind_kwargs={
            "settings": plain,
            "environment": options.environment,
            "instances_per_node": options.instances_per_node,
        },
    )
    front = serve.deployment(
        serve.ingress()(FrontDeployment),
        name=FRONT,
        num_replicas=1,
        max_ongoing_requests=_NO_LIMIT,
    )
    return front.bind(instances, plain, options.api_keys)
