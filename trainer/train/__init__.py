"""One step, one loop, one checkpoint format."""
