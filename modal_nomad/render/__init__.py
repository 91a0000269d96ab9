"""Pure functions from specifications to Nomad jobs, as dicts in Nomad's JSON job format. No I/O."""

from __future__ import annotations

from modal_nomad.render.function import render_function
from modal_nomad.render.schedule import schedule_job, schedule_job_id
from modal_nomad.render.settings import RenderSettings

__all__ = ["RenderSettings", "render_function", "schedule_job", "schedule_job_id"]
