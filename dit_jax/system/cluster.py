"""Which processes make a run: from flags, or from Slurm, Open MPI or Kubernetes as JAX knows them.

Several processes are joined before anything else; from then on together.py is how they act as one. A process that is by
itself is left alone: one task of Slurm, a shell in an allocation, a pod that is no part of an Indexed Job.
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
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # what JAX asks for


@dataclass(frozen=True)
class Place:
    """A process's place among several; None is left to JAX to find.

    `method` is what JAX calls the environment, "deactivate" for none; `local_device_ids` are the GPUs that this process
    takes of its machine's, () for all that it sees.
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
    """This process's place from the flags, or else, with `detect`, from the environment; None if it is by itself.

    Raises:
      UserError: flags that do not fit together, or an environment without what they leave out.
    """
    found = detected(environ) if detect else None
    if coordinator is None and num_processes is None and process_id is None:
        if found and found.method == "ompi" and "OMPI_MCA_orte_hnp_uri" not in environ:
            raise UserError(
                f"this Open MPI does not say where process 0 is ({found.num_processes} processes): give --coordinator "
                "HOST:PORT, a machine of the first process and a free port; or --cluster=none for runs by themselves"
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
        raise UserError(f"{flag} is missing; each process gets --coordinator, --num_processes and its own --process_id")
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: use the number of all processes, at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id}: use 0 to {num_processes - 1}, as --num_processes={num_processes}")
    devices = found.local_device_ids if found else None
    return Place(process_id, num_processes, coordinator, local_device_ids=devices) if num_processes > 1 else None


def detected(environ: Mapping[str, str]) -> Place | None:
    """The place that the environment gives, None for a process by itself. Open MPI is asked first, as JAX does."""
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        here, mine = (int(environ.get(f"OMPI_COMM_WORLD_LOCAL_{name}", 0)) for name in ("SIZE", "RANK"))
        rank, size = (int(environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE"))
        return Place(rank, size, method="ompi", local_device_ids=devices_of(here, mine, environ))
    if all(name in environ for name in SLURM):
        # Of the step, not of the job: a shell in an allocation of many tasks is one task.
        size = int(environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"]))
        here, mine = tasks_on_node(environ), int(environ["SLURM_LOCALID"])
        taken = devices_of(here, mine, environ)
        return Place(int(environ["SLURM_PROCID"]), size, method="slurm", local_device_ids=taken) if size > 1 else None
    indexed_job = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    if indexed_job and importlib.util.find_spec("kubernetes") is not None:  # else JAX cannot ask for the others
        return Place(int(environ["JOB_COMPLETION_INDEX"]), None, method="k8s")
    return None


def tasks_on_node(environ: Mapping[str, str]) -> int:
    """How many tasks of this step Slurm started on this machine, from its `2(x3),1`: 2 on each of three machines, 1."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        counts += [int(found[1])] * int(found[2] or 1) if found else []
    node = int(environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else int(environ["SLURM_LOCALID"]) + 1


def devices_of(here: int, mine: int, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of process number `mine` of `here` on a machine: all that it sees if it is alone there, else one.

    Where the scheduler shows each process only its own GPU, it takes that one. JAX's own variable has the last word.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    if here <= 1 or len(environ.get("CUDA_VISIBLE_DEVICES", "several,").split(",")) == 1:
        return ()
    return (mine,)


def check_port(coordinator: str) -> None:
    """Refuses a port that another program of this machine, that of process 0, listens at.

    JAX's service would share it with another run's, whose processes then abort.
    """
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended are no hindrance
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"--coordinator={coordinator}: port {port} cannot be used on this machine, that of process 0 ({reason})"
                "; each run needs a free one of its own"
            ) from None


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool,
    trained: Path | None = None,
) -> None:
    """Finds this process's place, and waits for the others if there are any; comes before anything touches a device.

    `trained` is the folder whose only trainer this will be, if it is one: where a run is under way in it, this process
    must not meet that run's others, whom it would end.

    Raises:
      UserError: as `find`; the folder or the port is another run's; or the others could not be reached.
    """
    place = find(coordinator, num_processes, process_id, detect, os.environ)
    if place is None:
        return
    if trained is not None:
        lock.check_free(trained)
    if place.coordinator and place.process_id == 0:
        check_port(place.coordinator)
    # JAX's own handler would take SIGTERM away from stop.py, and before the first step from Python.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX, when it has waited long enough, ends the process from C++ with a trace of its stack.
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
            "is the machine of process 0 and a free port there; --cluster=none is for a run by itself"
        ) from None
    finally:
        late.cancel()
    compilation.use_shared_cache_alone()
    together.begin()


def _give_up(place: Place) -> NoReturn:
    where = place.coordinator or f"what {place.method} says"
    print(
        f"error: process {place.process_id} waited {PATIENCE} seconds for the others, by --coordinator={where}: start "
        f"all {place.num_processes or ''} of them, in reach of that machine; --cluster=none is for a run by itself",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
