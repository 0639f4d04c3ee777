"""One writer for a run's metrics: TensorBoard events in the background, metrics.jsonl at once."""

# pyright: reportAttributeAccessIssue=false
# (protocol buffers make their classes at run time, where a type checker cannot see them)

import time
from pathlib import Path

from clu.metric_writers import AsyncWriter, MetricWriter, MultiWriter, SummaryWriter
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dit_jax.errors import UserError
from dit_jax.reporting.jsonl import JsonlWriter
from dit_jax.system.jsonl import drop_rows_after
from dit_jax.system.together import is_first


def create_writer(workdir: Path, resume_step: int = 0) -> MetricWriter:
    """Returns the writer of a run that continues after `resume_step` (0: starts); creates `workdir` if it is missing.

    What a killed run wrote beyond `resume_step` is dropped from metrics.jsonl and hidden in TensorBoard. Scalars are in
    metrics.jsonl when `write_scalars` returns. A thread writes TensorBoard's file; its errors are raised by the next
    write, `flush` or `close` as `clu.asynclib.AsyncError`. Close the writer when done, for instance with
    `with contextlib.closing(create_writer(workdir)) as writer`. Of several processes, only the first one's writes.

    Raises:
        UserError: `workdir` cannot be a folder, because it or one of its parents is a file.
    """
    if not is_first():
        return MultiWriter([])
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"workdir {workdir} is, or lies below, a file; use a folder") from error
    metrics = workdir / "metrics.jsonl"
    drop_rows_after(metrics, resume_step)
    _start_session(workdir, resume_step)
    # clu closes these in order and stops at the first error, so the one that may raise comes last.
    return MultiWriter([JsonlWriter(metrics), AsyncWriter(SummaryWriter(str(workdir)))])


def _start_session(workdir: Path, resume_step: int) -> None:
    """Writes the event that begins a session, at which TensorBoard drops what earlier ones wrote past `resume_step`."""
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    events = EventFileWriter(str(workdir))
    # TensorBoard purges the event's own step too, hence the 1.
    events.add_event(event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
    events.close()
