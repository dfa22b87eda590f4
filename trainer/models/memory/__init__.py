"""How much memory and arithmetic a training pass will take, from its graph, before anything runs."""

from trainer.models.memory.cost import flops_per_pass
from trainer.models.memory.peak import PeakMemory, peak_memory, predicted_peak_bytes

__all__ = ["PeakMemory", "flops_per_pass", "peak_memory", "predicted_peak_bytes"]
