"""XML files of strangers, read as a stream: nothing but the open annotation is held, however large the file.

Document types, entities and external references are refused, not resolved (defusedxml).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from trainer.errors import AnnotationError
from trainer.slides.annotations.drawing import Drawing, printable

_CHUNK_BYTES = 1 << 16


class XmlReader(Protocol):
    """Hears the tags below the root, in order."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None: ...

    def end(self, tag: str) -> None: ...

    def drawing(self) -> Drawing: ...


def read_xml(path: Path, readers: Mapping[str, Callable[[Path], XmlReader]]) -> Drawing:
    """A drawing by the reader that knows the root's tag.

    Raises:
      AnnotationError: not well-formed, with a document type or entities, or of an unknown root.
    """
    target = _Root(path, readers)
    parser = XMLParser(target=target, forbid_dtd=True)
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                parser.feed(data)
        parser.close()
    except DefusedXmlException as error:
        raise AnnotationError(
            f"is refused ({type(error).__name__}): document types and entities can make a reader fetch files or fill "
            f"the memory, and annotations need none",
            where=str(path),
            fix="delete the <!DOCTYPE ...> part",
        ) from None
    except (ParseError, ValueError, LookupError) as error:  # the latter two: an encoding that does not exist
        raise AnnotationError(
            f"is not readable XML: {printable(str(error))}", where=str(path), fix="copy it again, or save it anew"
        ) from None
    assert target.reader is not None  # well-formed XML has a root
    return target.reader.drawing()


class _Root:
    """The parser's target: hands all that lies below the root to the root's reader."""

    def __init__(self, path: Path, readers: Mapping[str, Callable[[Path], XmlReader]]) -> None:
        self._path, self._readers = path, readers
        self.reader: XmlReader | None = None

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self.reader is not None:
            self.reader.start(tag, attributes)
            return
        if tag not in self._readers:
            raise AnnotationError(
                f"is not an annotation file: it begins with <{printable(tag)[:50]}>, not with "
                f"{' or '.join(f'<{t}>' for t in self._readers)}",
                where=str(self._path),
                fix="give XML of ASAP or ImageScope, GeoJSON of QuPath, or a mask image",
            )
        self.reader = self._readers[tag](self._path)

    def end(self, tag: str) -> None:
        assert self.reader is not None
        self.reader.end(tag)


def vertex(attributes: Mapping[str, str], where: Callable[[], str]) -> tuple[float, float]:
    """(x, y) of a point from its attributes X and Y."""
    try:
        return float(attributes["X"]), float(attributes["Y"])
    except KeyError as error:
        raise AnnotationError(f"a point has no {error.args[0]}", where=where(), fix="redraw or delete it") from None
    except ValueError as error:
        raise AnnotationError(
            f"a coordinate is not a number ({printable(str(error))[:100]})", where=where(), fix="redraw or delete it"
        ) from None
