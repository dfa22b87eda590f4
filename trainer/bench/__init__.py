"""Measurements that a user can repeat: one module per question, each writes its table, numbers and picture."""
