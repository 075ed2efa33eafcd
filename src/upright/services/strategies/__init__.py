"""The strategies that runbooks name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy
from upright.services.strategies.cache_clear import CacheClear
from upright.services.strategies.circuit_break import CircuitBreak
from upright.services.strategies.custom import Custom
from upright.services.strategies.fallback import Fallback
from upright.services.strategies.pool_increase import PoolIncrease
from upright.services.strategies.queue_priority import QueuePriority
from upright.services.strategies.request_throttle import RequestThrottle
from upright.services.strategies.resource_scale import ResourceScale
from upright.services.strategies.retry import Retry
from upright.services.strategies.service_restart import ServiceRestart
from upright.services.strategies.timeout_increase import TimeoutIncrease

__all__ = ["STRATEGIES", "Custom", "Fleet", "Parameters", "Plan", "Strategy", "title"]

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            Retry(),
            TimeoutIncrease(),
            CacheClear(),
            PoolIncrease(),
            ResourceScale(),
            CircuitBreak(),
            Fallback(),
            QueuePriority(),
            RequestThrottle(),
            ServiceRestart(),
        )
    }
)
"""By name, in the guide's order."""


def title(strategy: str) -> str:
    """`pool_increase` as people read it: Pool Increase."""
    return strategy.replace("_", " ").title()
