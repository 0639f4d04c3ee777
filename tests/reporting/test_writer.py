"""Events are read back by TensorBoard and metrics.jsonl by a JSON reader; TensorFlow is not needed."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from clu.asynclib import AsyncError
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer import event_file_writer

import dit_jax
from dit_jax import errors
from dit_jax.errors import UserError
from dit_jax.reporting.jsonl import JsonlWriter
from dit_jax.reporting.writer import create_writer
from dit_jax.system import jsonl


def tensorboard(workdir: Path) -> EventAccumulator:
    return EventAccumulator(str(workdir), size_guidance={"tensors": 0}).Reload()


def scalars(workdir: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.tensor_proto.float_val[0]) for event in tensorboard(workdir).Tensors(name)]


def rows(workdir: Path) -> list[dict]:
    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_scalars_reach_tensorboard_and_metrics_jsonl(tmp_path):
    writer = create_writer(tmp_path / "new" / "run")
    writer.write_scalars(10, {"loss": 0.5, "images": 640})
    writer.write_scalars(np.int64(20), {"loss": jnp.float32(0.25), "images": np.int32(1280)})
    writer.close()
    assert scalars(tmp_path / "new" / "run", "loss") == [(10, 0.5), (20, 0.25)]
    assert rows(tmp_path / "new" / "run") == [
        {"step": 10, "loss": 0.5, "images": 640},
        {"step": 20, "loss": 0.25, "images": 1280},
    ]


def test_a_folder_that_was_moved_away_is_told_in_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    errors.quieten_threads()
    writer = create_writer(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises((AsyncError, FileNotFoundError)) as ended:  # noqa: PT012
        for step in range(100):
            writer.write_scalars(step, {"loss": 0.5})
            writer.flush()
    code, line = errors.explain(ended.value)
    assert code == 2
    assert f"error: {tmp_path / 'run'} was moved or removed while being written to" in str(line)
    with contextlib.suppress(AsyncError, FileNotFoundError):
        writer.close()
    assert "Traceback" not in capfd.readouterr().err


def test_images_of_one_and_three_channels_decode_to_the_same_pixels(tmp_path):
    grid = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    gray = np.random.default_rng(1).integers(0, 256, (2, 4, 3, 1), np.uint8)
    writer = create_writer(tmp_path)
    writer.write_images(3, {"grid": grid, "gray": gray, "floats": np.array([[[0.0], [0.5], [1.0]]])})
    writer.close()
    events = tensorboard(tmp_path)
    assert events.SummaryMetadata("grid").plugin_data.plugin_name == "images"
    width, height, png = events.Tensors("grid")[0].tensor_proto.string_val
    assert (int(width), int(height)) == (7, 5)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), grid)
    _, _, first, second = events.Tensors("gray")[0].tensor_proto.string_val
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first))), gray[0, ..., 0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(second))), gray[1, ..., 0])
    # tf.image.convert_image_dtype: x * (255 + 0.5), saturated and truncated
    floats = Image.open(io.BytesIO(events.Tensors("floats")[0].tensor_proto.string_val[2]))
    np.testing.assert_array_equal(np.asarray(floats), [[0, 127, 255]])


def test_text_and_histogram_have_their_tabs(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_texts(1, {"parameters": "| a | b |"})
    writer.write_histograms(1, {"weights": np.array([0.0, 1.0, 1.0, np.nan])}, {"weights": 2})
    writer.close()
    events = tensorboard(tmp_path)
    assert events.SummaryMetadata("parameters").plugin_data.plugin_name == "text"
    assert events.Tensors("parameters")[0].tensor_proto.string_val[0] == b"| a | b |"
    assert events.SummaryMetadata("weights").plugin_data.plugin_name == "histograms"
    triples = np.frombuffer(events.Tensors("weights")[0].tensor_proto.tensor_content).reshape(-1, 3)
    np.testing.assert_array_equal(triples, [[0.0, 0.5, 1], [0.5, 1.0, 2]])  # left, right, count


def test_hyperparameters_are_flattened_for_the_plugin(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_hparams({"s": 3, "model": {"width": 384, "remat": False}, "labels": (1, 2), "name": "x", "no": None})
    writer.close()
    content = tensorboard(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()} == {
        "s": 3, "model.width": 384, "model.remat": False, "labels.0": 1, "labels.1": 2, "name": "x", "no": "",
    }  # fmt: skip


def test_non_finite_values_are_null(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": float("nan"), "grad_norm": np.float32("inf"), "rate": -float("inf"), "ok": 1.5})
    writer.close()
    assert rows(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "rate": None, "ok": 1.5}]


def test_a_resumed_run_shows_no_step_twice_and_loses_none(tmp_path, monkeypatch):
    # Files of the same second are read in the text order of their numbers, so these begin at 0, as in a new process.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    first = create_writer(tmp_path)
    for step in (10, 20, 30):
        first.write_scalars(step, {"loss": float(step)})
    first.write_scalars(30, {"only_then": 1.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "loss": 0.1')  # what a kill leaves of a line
    second = create_writer(tmp_path, resume_step=20)
    second.write_scalars(30, {"loss": 300.0})
    second.close()
    assert rows(tmp_path) == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": 300.0},
    ]
    assert scalars(tmp_path, "loss") == [(10, 10.0), (20, 20.0), (30, 300.0)]
    assert tensorboard(tmp_path).Tensors("only_then") == []
    assert sorted(path.name for path in tmp_path.iterdir() if "tfevents" not in path.name) == ["metrics.jsonl"]


def test_rows_that_stay_are_not_touched_and_a_failed_rewrite_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"loss": 0.10, "step": 1}\n{"step": 2}\n')
    before = path.stat()
    jsonl.drop_rows_after(path, 2)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            jsonl.drop_rows_after(path, 1)
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert path.read_text() == '{"loss": 0.10, "step": 1}\n{"step": 2}\n'
    jsonl.drop_rows_after(path, 1)
    assert path.read_text() == '{"loss": 0.10, "step": 1}\n'


def test_a_kill_keeps_every_row_that_was_written(tmp_path):
    code = f"""
        import os, pathlib, signal
        from dit_jax.reporting.writer import create_writer
        writer = create_writer(pathlib.Path({str(tmp_path)!r}))
        for step in range(50):
            writer.write_scalars(step, {{"loss": step / 2}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert rows(tmp_path) == [{"step": step, "loss": step / 2} for step in range(50)]


def test_an_error_of_the_thread_surfaces_and_the_rest_is_flushed(tmp_path, caplog):
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_images(1, {"grid": np.zeros((2, 2), np.uint8)})  # not an image's shape
    with pytest.raises(AsyncError):
        writer.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0)]


def test_a_file_as_workdir_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("mine")
    for workdir in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match="use a folder") as caught:
            create_writer(workdir)
        assert str(workdir) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "run").read_text() == "mine"


def test_without_tensorflow_clu_runs_and_says_nothing(tmp_path):
    code = f"""
        import importlib.util, pathlib, sys
        sys.modules["tensorflow"] = None  # as if it were not installed, even if it is
        from dit_jax.reporting.writer import create_writer
        from clu import metric_writers, periodic_actions
        writer = create_writer(pathlib.Path({str(tmp_path)!r}))
        writer.write_scalars(1, {{"loss": 1.0}})
        writer.close()
        assert metric_writers.SummaryWriter.__module__ == "dit_jax.reporting.summary_writer"
        assert sys.modules["tensorflow"] is None
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_needs_the_stand_in_is_imported_where_it_is_made():
    """Elsewhere it might be imported before `dit_jax.reporting`, and ask for TensorFlow."""
    package = Path(dit_jax.__file__).parent
    users = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"^\s*from clu(\.| import )(metric_writers|periodic_actions)", path.read_text(), re.MULTILINE)
    }
    assert users == {"reporting"}


def test_with_tensorflow_clus_own_writer_is_used(tmp_path):
    # A package of that name, which only shows that clu's own module imported it.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('clu asked for TensorFlow')\n")
    done = subprocess.run(
        [sys.executable, "-c", "import dit_jax.reporting.writer"],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert "clu asked for TensorFlow" in done.stderr
    assert "clu/metric_writers/tf/summary_writer.py" in done.stderr


def test_no_row_is_added_to_a_link_to_nowhere(tmp_path):
    (tmp_path / "evaluations.jsonl").symlink_to(tmp_path / "no" / "where")
    with pytest.raises(UserError, match="into a missing folder; mount or create that folder, or remove the link"):
        jsonl.append(tmp_path / "evaluations.jsonl", {"step": 1})


def test_a_row_for_a_workdir_that_was_moved_away_says_so(tmp_path):
    with pytest.raises(UserError, match="/run was moved or removed while being written to"):
        jsonl.append(tmp_path / "run" / "evaluations.jsonl", {"step": 1})


def test_a_link_to_nowhere_is_one_clear_line(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "no" / "where")
    with pytest.raises(UserError, match=r"metrics.jsonl is a link into a missing folder"):
        JsonlWriter(tmp_path / "metrics.jsonl")
