"""Where the ranks of this run are, told once, kept in affinity.json, and refused where it would cost speed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from trainer.config.schema import Config, RuntimeConfig
from trainer.errors import AffinityError
from trainer.files import replace_content
from trainer.models.keras import tf
from trainer.runtime import Comm, on_root
from trainer.runtime.affinity import Placement, gpu_of, idle_cores, my_placement, problems_of, table
from trainer.runtime.start import CPUS_AT_START
from trainer.train.console import Console


def check_placement(config: RuntimeConfig, comm: Comm) -> list[Placement]:
    """Gather and judge where all ranks are. A collective; called after TensorFlow was configured.

    Raises:
      AffinityError: a placement that slows ranks down, unless `runtime.affinity` is warn; on all ranks alike.
    """
    threads = tf.config.threading
    mine = my_placement(
        comm.rank,
        comm.local_rank,
        CPUS_AT_START,
        threads.get_intra_op_parallelism_threads(),
        threads.get_inter_op_parallelism_threads(),
        _gpu(comm.rank),
    )
    placements = comm.gather(mine)
    problems = problems_of(placements)
    if problems and config.affinity == "stop":
        raise AffinityError(
            "\n  ".join([*problems, *table(placements).splitlines()]),
            where="placement of ranks",
            fix="`widefield launch CONFIG` (one rank per socket or GPU; --ranks N) binds them, here and within a Slurm "
            "job; runtime.affinity=warn goes on all the same",
        )
    return placements


def check_groups_on_nodes(config: Config, placements: list[Placement]) -> None:
    """Whether ranks that share a patch are on one node, where a stage asks for that.

    Raises:
      AffinityError: naming the ranks and their nodes; on all ranks alike.
    """
    hosts = [p.host for p in placements]
    for number, stage in enumerate(config.curriculum):
        spatial = stage.parallel.spatial
        for first in range(0, len(hosts), spatial) if stage.parallel.within_node else ():
            group = hosts[first : first + spatial]
            if len(set(group)) > 1:
                raise AffinityError(
                    f"ranks {first} to {first + spatial - 1} share a patch and are on {', '.join(sorted(set(group)))}",
                    where=f"curriculum[{number}].parallel.within_node",
                    fix=f"a multiple of {spatial} ranks per node, or curriculum.{number}.parallel.within_node=false",
                )


def record_placement(placements: list[Placement], comm: Comm, console: Console, folder: Path) -> None:
    """Show the table of ranks and what is wrong with it, and write affinity.json. All ranks."""
    problems = problems_of(placements)
    record = {"problems": problems, "ranks": [p.as_json() for p in placements]}
    on_root(comm, lambda: replace_content(folder / "affinity.json", json.dumps(record, indent=1) + "\n"))
    if comm.world_size == 1:
        if placements[0].node_sockets > 1:
            console.line(
                f"remark: one process on {placements[0].node_sockets} sockets; `widefield launch CONFIG` trains with a "
                "rank on each"
            )
        return
    for line in table(placements).splitlines():
        console.line(line)
    remark = idle_cores(placements)
    if remark:
        console.line(f"warning: {remark}; `widefield launch CONFIG` shares out all of them")
    for problem in problems:
        console.line(f"warning: {problem}")


def _gpu(rank: int) -> str | None:
    """The GPU that TensorFlow was given, as the driver counts them."""
    devices = tf.config.get_visible_devices("GPU")
    if not devices:
        return None
    return gpu_of(rank, int(devices[0].name.rsplit(":", 1)[-1]), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
