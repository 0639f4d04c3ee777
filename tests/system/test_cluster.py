"""A process's place in a run: from flags, from environment variables (as real schedulers set them), or none."""

import contextlib
import socket
import subprocess
import sys

import pytest

from dit_jax.errors import UserError
from dit_jax.jobs import modes
from dit_jax.system import cluster, lock
from dit_jax.system.cluster import Place, detected, find
from tests.system.test_lock import HOLDER

# `srun --nodes=2 --ntasks-per-node=4`, the second task on the second node.
SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


def test_a_task_takes_the_gpu_of_its_number():
    assert detected(SLURM) == Place(5, 8, None, "slurm", (1,))
    assert detected(MPI) == Place(5, 8, None, "ompi", (1,))
    assert detected(MPI | SLURM) == Place(5, 8, None, "ompi", (1,))  # mpirun within an allocation


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"},
        {"SLURM_STEP_TASKS_PER_NODE": "7,1", "SLURM_LOCALID": "0"},  # seven on the first node, one on the second
        {"CUDA_VISIBLE_DEVICES": "3"},  # --gpus-per-task=1: it sees only its own
    ],
)
def test_a_task_takes_all_that_it_sees_where_it_is_alone(changed):
    place = detected(SLURM | changed)
    assert place.method == "slurm"
    assert place.local_device_ids == ()


def test_several_gpus_that_all_tasks_see_are_shared():
    assert detected(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_device_ids == (1,)


@pytest.mark.parametrize("changed", [{}, {"SLURM_STEP_TASKS_PER_NODE": "7,1"}])
def test_jaxs_own_variable_for_devices_takes_precedence(changed):
    """JAX reads JAX_LOCAL_DEVICE_IDS itself if it is given no devices (None)."""
    assert detected(SLURM | changed | {"JAX_LOCAL_DEVICE_IDS": "2,3"}).local_device_ids is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},  # srun -n 1
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell in an allocation of eight tasks
        {name: value for name, value in SLURM.items() if "STEP" not in name},  # a batch script without srun
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        POD,  # a notebook
        POD | {"JOB_COMPLETION_INDEX": "3"},  # without the package kubernetes, JAX cannot find the others
    ],
)
def test_a_process_by_itself_is_left_alone(environ):
    assert find(None, None, None, True, environ) is None


def test_flags_win_and_the_environment_fills_what_they_leave_out():
    node = "node1:5555"
    assert find(node, 4, 3, True, {}) == Place(3, 4, node)
    assert find(node, 4, 3, False, SLURM) == Place(3, 4, node)
    assert find(node, None, None, True, MPI) == Place(5, 8, node, local_device_ids=(1,))
    assert find(node, 1, 0, True, {}) is None
    assert find(None, None, None, False, SLURM) is None


@pytest.mark.parametrize(
    ("flags", "environ", "told"),
    [
        ((None, 4, 3), {}, "--coordinator is missing; give HOST:PORT"),
        (("node1", 4, 3), {}, "--coordinator=node1 is not HOST:PORT, such as"),
        (("node1:0", 4, 3), {}, "--coordinator=node1:0 is not HOST:PORT, such as"),
        (("node1:99", None, 3), {}, "--num_processes is missing; every process needs"),
        (("node1:99", 4, None), {}, "--process_id is missing; every process needs"),
        (("node1:99", 4, 4), {}, "--process_id=4: use 0 to 3, for --num_processes=4"),
        (("node1:99", 4, -1), {}, "--process_id=-1: use 0 to 3"),
        (("node1:99", 0, 0), {}, "--num_processes=0: use the number of all processes"),
        ((None, None, None), {n: v for n, v in MPI.items() if "MCA" not in n}, "give --coordinator HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, environ, told):
    with pytest.raises(UserError, match=told):
        find(*flags, True, environ)


ALONE = """
import jax
from dit_jax.system import cluster
jax.config.update("jax_platforms", "cpu")
cluster.PATIENCE = 1
cluster.join("127.0.0.1:9", 2, 1, detect=False)
"""


def test_a_process_that_nobody_meets_ends_in_one_line():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: process 1 waited 1 seconds for the others (--coordinator=127.0.0.1:9): start")


def join_first(port, trained=None):
    cluster.join(f"127.0.0.1:{port}", 2, 0, False, trained)


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_another_listens_at_is_refused(shared):
    """Even if the other listener would share it, as JAX's service does."""
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--coordinator=127.0.0.1:{port}: port {port} cannot be used on this mach"):
            join_first(port)
    with pytest.raises(UserError, match="port 99999 cannot be used"):
        join_first(99999)


def test_a_port_whose_connections_have_ended_is_free():
    """They linger for a minute, during which a run may be restarted."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = server.getsockname()[1]
        server.accept()[0].close()  # closed first, so that this side's connection lingers
        assert client.recv(1) == b""
    cluster.check_port(f"127.0.0.1:{port}")


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_run_under_way_is_not_met(process_id, tmp_path):
    """Joining the processes of that run would end them."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another training run is using it .process {holder.pid} on"):
            cluster.join("127.0.0.1:9", 2, process_id, False, tmp_path)
        holder.kill()
    lock.check_free(tmp_path)  # although the file is still there
    lock.check_free(tmp_path / "none")


@pytest.mark.parametrize(
    ("mode", "refused"), [("train", True), ("train_autoencoder", True), ("train_classifier", False)]
)
def test_a_mode_asks_for_the_lock_that_it_will_take(mode, refused, tmp_path):
    """Training an autoencoder takes the run's lock before its own."""
    with lock.only_trainer(tmp_path), pytest.raises(UserError) if refused else contextlib.nullcontext():
        lock.check_free(modes.trained_folder(mode, str(tmp_path)))
