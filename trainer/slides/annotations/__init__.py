"""Annotation files of strangers -> drawings (areas in level-0 pixels) -> one clean geometry per label.

`read_annotations` reads a file, whichever program wrote it; `label_geometries` gives groups their meaning.
"""

from trainer.slides.annotations.combine import label_geometries
from trainer.slides.annotations.drawing import Annotation, Drawing
from trainer.slides.annotations.read import ANNOTATION_SUFFIXES, read_annotations
from trainer.slides.annotations.report import AnnotationReport

__all__ = [
    "ANNOTATION_SUFFIXES",
    "Annotation",
    "AnnotationReport",
    "Drawing",
    "label_geometries",
    "read_annotations",
]
