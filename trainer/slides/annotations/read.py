"""Which reader an annotation file needs: decided by what it holds, not by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from trainer.errors import AnnotationError
from trainer.slides.annotations.asap import AsapReader
from trainer.slides.annotations.drawing import Drawing
from trainer.slides.annotations.geojson import read_geojson
from trainer.slides.annotations.imagescope import ImageScopeReader
from trainer.slides.annotations.xml_file import XmlReader, read_xml

ANNOTATION_SUFFIXES = (".xml", ".geojson", ".json")
_XML_READERS: dict[str, Callable[[Path], XmlReader]] = {"ASAP_Annotations": AsapReader, "Annotations": ImageScopeReader}
_HEAD_BYTES = 4096


def read_annotations(path: Path) -> Drawing:
    """The areas of an ASAP XML, ImageScope XML or QuPath GeoJSON file, and what was passed over.

    Points, lines and measurements are passed over, and so are outlines that enclose nothing. What cannot be understood,
    or encloses nobody knows what, is an error.

    Raises:
      AnnotationError: missing, unreadable, of an unknown kind, or damaged; names file and annotation.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        beginning = head.decode(json.detect_encoding(head), "replace").lstrip("\ufeff \t\r\n")
        if beginning.startswith("<"):
            return read_xml(path, _XML_READERS)
        if beginning.startswith(("{", "[")):
            return read_geojson(path)
    except FileNotFoundError:
        raise AnnotationError("there is no such file", where=str(path), fix="correct the path") from None
    except OSError as error:
        raise AnnotationError(
            f"cannot be read: {error.strerror or error}", where=str(path), fix="correct the path or its permissions"
        ) from None
    raise AnnotationError(
        "is empty" if not head.strip() else f"is neither XML nor JSON: it begins with {head[:8]!r}",
        where=str(path),
        fix="give XML of ASAP or ImageScope, GeoJSON of QuPath, or a mask image",
    )
