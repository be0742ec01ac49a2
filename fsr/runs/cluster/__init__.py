"""The same tasks on a Ray cluster."""

from fsr.runs.cluster.driver import on_ray
from fsr.runs.cluster.plan import Job, plan, resources

__all__ = ["Job", "on_ray", "plan", "resources"]
