"""From a trained run to a network that other programs run, and what that is worth on this machine."""
