"""The one training loop: forward, backward, accumulate, clip, step, schedule, log, save, and go on where it stopped.

It sees built objects alone: no registry, no plugin, no name of a config. It holds nothing process-wide, and what it draws
itself it draws aside, so trainings live side by side.
"""

from brewer_core.engine.loop import Engine
from brewer_core.engine.parameters import add_parameter_groups, check_parameters
from brewer_core.engine.settings import Duration, Settings, numbered, steps_per_epoch
from brewer_core.engine.stepping import FACTOR

__all__ = [
    "FACTOR",
    "Duration",
    "Engine",
    "Settings",
    "add_parameter_groups",
    "check_parameters",
    "numbered",
    "steps_per_epoch",
]
