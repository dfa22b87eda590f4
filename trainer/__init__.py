"""Widefield: train segmentation networks on whole-slide images with a curriculum of growing patch sizes."""

__version__ = "0.1.0"
