"""Everything that follows from a round and a cluster, before any money is spent."""

from caspi.plan.derive import Plan, make_plan
from caspi.plan.memory import micro_batch_seconds
from caspi.plan.text import render

__all__ = ["Plan", "make_plan", "micro_batch_seconds", "render"]
