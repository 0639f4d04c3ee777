"""Finds the processes of a run: from flags, or from Slurm, Open MPI or Kubernetes as JAX detects them.

Several processes are joined before anything else; from then on together.py makes them act as one. A process that runs
by itself is left alone: a single Slurm task, a shell in an allocation, a pod outside an Indexed Job.
"""

import importlib.util
import os
import re
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax

from dit_jax.errors import UserError
from dit_jax.system import compilation, lock, together

PATIENCE = 300  # seconds that a process waits for the others to start
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # JAX reads these


@dataclass(frozen=True)
class Place:
    """A process's place among several; JAX finds the values that are None.

    `method` is JAX's name for the environment, "deactivate" for none. `local_device_ids` are the GPUs of its machine
    that this process uses, () for all that it sees.
    """

    process_id: int
    num_processes: int | None
    coordinator: str | None = None
    method: str = "deactivate"
    local_device_ids: tuple[int, ...] | None = None


def find(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool,
    environ: Mapping[str, str],
) -> Place | None:
    """Returns this process's place from the flags or, with `detect`, the environment; None if it runs by itself.

    Raises:
      UserError: the flags do not fit together, or the environment lacks what they leave out.
    """
    found = detected(environ) if detect else None
    if coordinator is None and num_processes is None and process_id is None:
        if found and found.method == "ompi" and "OMPI_MCA_orte_hnp_uri" not in environ:
            raise UserError(
                f"this Open MPI does not say where process 0 is ({found.num_processes} processes): give --coordinator "
                "HOST:PORT, the machine of process 0 and a free port there; or --cluster=none to run each one alone"
            )
        return found
    if coordinator is None:
        raise UserError("--coordinator is missing; give HOST:PORT, the machine of process 0 and a free port there")
    if not re.fullmatch(r".+:0*[1-9]\d{,4}", coordinator):
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as node001:55527")
    num_processes = found.num_processes if num_processes is None and found else num_processes
    process_id = found.process_id if process_id is None and found else process_id
    if num_processes is None or process_id is None:
        flag = "--num_processes" if num_processes is None else "--process_id"
        raise UserError(
            f"{flag} is missing; every process needs --coordinator, --num_processes and its own --process_id"
        )
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: use the number of all processes, at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id}: use 0 to {num_processes - 1}, for --num_processes={num_processes}")
    devices = found.local_device_ids if found else None
    return Place(process_id, num_processes, coordinator, local_device_ids=devices) if num_processes > 1 else None


def detected(environ: Mapping[str, str]) -> Place | None:
    """Returns the place that the environment gives; None for a process by itself. Open MPI comes first, as in JAX."""
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        here, mine = (int(environ.get(f"OMPI_COMM_WORLD_LOCAL_{name}", 0)) for name in ("SIZE", "RANK"))
        rank, size = (int(environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE"))
        return Place(rank, size, method="ompi", local_device_ids=devices_of(here, mine, environ))
    if all(name in environ for name in SLURM):
        # The step's count, not the job's: a shell in an allocation of many tasks is one task.
        size = int(environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"]))
        here, mine = tasks_on_node(environ), int(environ["SLURM_LOCALID"])
        taken = devices_of(here, mine, environ)
        return Place(int(environ["SLURM_PROCID"]), size, method="slurm", local_device_ids=taken) if size > 1 else None
    indexed_job = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    if indexed_job and importlib.util.find_spec("kubernetes") is not None:  # else JAX cannot look up the others
        return Place(int(environ["JOB_COMPLETION_INDEX"]), None, method="k8s")
    return None


def tasks_on_node(environ: Mapping[str, str]) -> int:
    """Returns how many of this step's tasks are on this machine; Slurm's `2(x3),1` is 2 on each of three, then 1."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        counts += [int(found[1])] * int(found[2] or 1) if found else []
    node = int(environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else int(environ["SLURM_LOCALID"]) + 1


def devices_of(here: int, mine: int, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns the GPUs of process `mine` of the `here` on a machine: () for all that it sees if it is alone, else one.

    If the scheduler shows each process only its own GPU, that is () too. JAX's own variable takes precedence (None).
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    if here <= 1 or len(environ.get("CUDA_VISIBLE_DEVICES", "several,").split(",")) == 1:
        return ()
    return (mine,)


def check_port(coordinator: str) -> None:
    """Refuses a port that cannot be bound on this machine, that of process 0, as when another program listens on it.

    JAX's service would share the port with another run's, whose processes would then abort.
    """
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores connections that have ended
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"--coordinator={coordinator}: port {port} cannot be used on this machine, that of process 0 ({reason})"
                "; each run needs a free port of its own"
            ) from None


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool,
    trained: Path | None = None,
) -> None:
    """Finds this process's place and waits for the others, if any; must come before anything touches a device.

    `trained` is the folder that this run will train in, if any. If another run is training there, this process must not
    join that run's processes, which it would end.

    Raises:
      UserError: as `find`; another run uses the folder or the port; or the others cannot be reached.
    """
    place = find(coordinator, num_processes, process_id, detect, os.environ)
    if place is None:
        return
    if trained is not None:
        lock.check_free(trained)
    if place.coordinator and place.process_id == 0:
        check_port(place.coordinator)
    # JAX's own handler would take SIGTERM away from stop.py and, before the first step, from Python.
    jax.config.update("jax_enable_preemption_service", False)
    # When JAX itself times out, it ends the process from C++ with a stack trace; this comes earlier, with one line.
    late = threading.Timer(PATIENCE, _give_up, [place])
    late.daemon = True
    late.start()
    options: dict[str, Any] = {"cluster_detection_method": place.method, "initialization_timeout": 2 * PATIENCE}
    try:
        jax.distributed.initialize(
            place.coordinator, place.num_processes, place.process_id, place.local_device_ids, **options
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"process {place.process_id} cannot join the others ({' '.join(str(error).split())[:200]}): --coordinator "
            "must be the machine of process 0 and a free port there; use --cluster=none to run this process alone"
        ) from None
    finally:
        late.cancel()
    compilation.use_shared_cache_alone()
    together.begin()


def _give_up(place: Place) -> NoReturn:
    where = f"--coordinator={place.coordinator}" if place.coordinator else f"found through {place.method}"
    print(
        f"error: process {place.process_id} waited {PATIENCE} seconds for the others ({where}): start "
        f"all {place.num_processes or 'the'} processes where they can reach it, or use --cluster=none to run alone",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
