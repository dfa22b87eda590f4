"""Pixels and masks of one slide; nothing about patches or learning."""
