"""A machine that was not measured: its figures from a YAML file."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import StudyError
from trainer.scaling.model import Network


class NetworkFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    latency_us: float = Field(gt=0)
    """Of one message between two nodes."""
    bandwidth_gb_s: float = Field(gt=0)
    """Gigabytes per second that a node sends while it receives as much."""
    memory_bandwidth_gb_s: float = Field(gt=0)
    """The same between two ranks of a node."""
    ranks_per_node: int = Field(ge=1)
    compute_speed: float = Field(gt=0)
    """How many times as fast as the measured rank one of its ranks computes."""
    host_speed: float = Field(gt=0)
    """The same for casting, copying and adding."""
    spare_core: bool
    """Whether a rank leaves a core to the exchange of gradients."""
    nodes: tuple[int, ...] = Field(min_length=1)
    """Numbers of nodes to predict, ascending."""

    @property
    def network(self) -> Network:
        return Network(
            name=self.name,
            latency_s=self.latency_us / 1e6,
            bytes_per_s=self.bandwidth_gb_s * 1e9,
            memory_bytes_per_s=self.memory_bandwidth_gb_s * 1e9,
            ranks_per_node=self.ranks_per_node,
            compute_speed=self.compute_speed,
            host_speed=self.host_speed,
            spare_core=self.spare_core,
        )


def read_network(path: Path) -> NetworkFile:
    """Read and check a network file.

    Raises:
      StudyError: it is not there, not YAML, or a figure is missing or out of range; names file and key.
    """
    try:
        return NetworkFile.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise StudyError(f"cannot be read: {error.strerror}", where=str(path), fix="see configs/networks/") from None
    except yaml.YAMLError:
        raise StudyError("is not valid YAML", where=str(path), fix="see configs/networks/") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StudyError(f"{key}: {first['msg']}", where=str(path), fix="see configs/networks/") from None
