"""YAML file + `key.path=value` overrides -> Config, with errors that name the key and the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config.schema import Config
from trainer.errors import ConfigError, RunError, nearest


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's configuration.

    Args:
      path: YAML file.
      overrides: `key.path=value` strings applied after the file; values are YAML (`curriculum.1.steps=20`).
    Raises:
      ConfigError: unreadable file, bad YAML, unknown key, or a value out of range; names file and key.
    """
    path = Path(path)
    raw = _read_yaml(path)
    for item in overrides:
        _apply_override(raw, item)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path) from None


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run directory, whose `output` is where that lies now; see `load_config`.

    Raises:
      RunError: it holds none.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise RunError(
            "has no config.yaml: weights alone do not say of which network they are",
            where=str(run),
            fix="give the directory of a run; one that was copied needs config.yaml beside its folder checkpoints/",
        )
    return load_config(path, overrides).model_copy(update={"output": run})


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), fix="see configs/ for runs that are ready") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", where=str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError("does not hold a mapping of settings", where=str(path), fix="see configs/demo.yaml")
    return raw


def _apply_override(raw: dict[str, Any], item: str) -> None:
    key, sign, text = item.partition("=")
    if not sign or not key:
        raise ConfigError(f"'{item}' is not of the form key.path=value", where="command line")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value '{text}' is not valid YAML", where=f"override {key}") from None
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_list_position(node, part, key)]
        elif node.get(part) is None:
            node = node.setdefault(part, {}) if part not in node else node.__setitem__(part, {}) or node[part]
        else:
            node = node[part]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"'{part}' is a value, not a section", where=f"override {key}")
    if isinstance(node, list):
        node[_list_position(node, last, key)] = value
    else:
        node[last] = value


def _list_position(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"'{part}' is not a position in a list of {len(node)}", where=f"override {key}")
    return int(part)


def _explain(error: ValidationError, path: Path) -> ConfigError:
    """The first problem of a pydantic report, in the words of the config file."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = _key_path(first["loc"])
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    where = f"{path}, {key}" if key else str(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        hint = nearest(str(first["loc"][-1]), known)
        return ConfigError(f"unknown key{more}", where=where, fix=f"{hint}  (widefield config {path} prints all)")
    if first["type"] == "missing":
        return ConfigError(f"this key is required{more}", where=where, fix="add it; see configs/demo.yaml")
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    value = f" = {given!r}" if isinstance(given, (str, int, float, bool)) else ""
    return ConfigError(f"{message}{more}", where=f"{where}{value}")


def _key_path(loc: Iterable[int | str]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _known_keys(loc: Sequence[int | str]) -> list[str]:
    model: Any = Config
    for part in loc:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if _is_section(a)]
            model = inner[0]
    return list(model.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
