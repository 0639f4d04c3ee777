"""TensorBoard events without TensorFlow: a stand-in for the module `clu.metric_writers.tf.summary_writer`.

clu's own class writes through `tf.summary`, which costs a 1.4 GB installation and seconds of import for a few protocol
buffers. This one writes the same buffers through tensorboard's own `EventFileWriter`, and TensorBoard shows them in the
same tabs. It does not subclass clu's `MetricWriter`: importing that would import the module that is replaced here.
"""

# pyright: reportAttributeAccessIssue=false
# (protocol buffers make their classes at run time, where a type checker cannot see them)

import importlib.util
import io
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

FLUSH_SECONDS = 10  # a killed process loses up to this much of its curves; tensorboard's default is 120
DEFAULT_BUCKETS = 30  # as in tf.summary.histogram


def stand_in_for_tensorflow() -> None:
    """Makes this module the one that clu imports for its `SummaryWriter`, if TensorFlow is not installed."""
    if importlib.util.find_spec("tensorflow") is None:
        sys.modules.setdefault("clu.metric_writers.tf.summary_writer", sys.modules[__name__])


class SummaryWriter:
    """Writes one TensorBoard event file in `logdir`; the methods are those of `clu.metric_writers.MetricWriter`."""

    def __init__(self, logdir: str):
        self._events = EventFileWriter(logdir, flush_secs=FLUSH_SECONDS)

    def _add(self, step: int, summary: summary_pb2.Summary) -> None:
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=int(step), summary=summary))

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Writes any tensors; `metadata` are `SummaryMetadata` buffers (or their bytes) by the same names."""
        for name, value in values.items():
            about = (metadata or {}).get(name)
            about = summary_pb2.SummaryMetadata.FromString(about) if isinstance(about, bytes) else about
            self._add(step, _tensor_summary(name, np.asarray(value), about))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers, as float32."""
        for name, value in scalars.items():
            self._add(step, scalar_pb(name, np.asarray(value)))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images [n, H, W, C] or [H, W, C], C = 1 or 3: uint8, or floats in [0, 1]."""
        for name, value in images.items():
            batch = np.asarray(value)
            batch = batch[None] if batch.ndim == 3 else batch
            _, height, width, _ = batch.shape
            # The images tab wants one list of byte strings: width, height, then the encoded pictures.
            strings = [str(width).encode(), str(height).encode(), *map(_encode_png, batch)]
            about = image_metadata.create_summary_metadata(display_name=None, description=None)
            self._add(step, _tensor_summary(name, np.array(strings, object), about))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, which TensorBoard renders as Markdown."""
        for name, text in texts.items():
            self._add(step, text_pb(name, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes histograms of the finite values of arrays of any shape."""
        for name, array in arrays.items():
            flat = np.asarray(array).astype(np.float64).ravel()
            buckets = (num_buckets or {}).get(name) or DEFAULT_BUCKETS
            counts, edges = np.histogram(flat[np.isfinite(flat)], bins=buckets)
            rows = np.stack([edges[:-1], edges[1:], counts], axis=1)
            about = histogram_metadata.create_summary_metadata(display_name=None, description=None)
            self._add(step, _tensor_summary(name, rows, about))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the hyperparameters of the run; nested mappings and lists become names with dots."""
        self._add(0, hparams_summary.hparams_pb(dict(_flatten(hparams))))

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Only logs a warning, once, as clu's own class does."""
        logging.log_first_n(logging.WARNING, "SummaryWriter does not support writing videos.", 1)

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Only logs a warning, once: encoding audio needs TensorFlow."""
        logging.log_first_n(logging.WARNING, "SummaryWriter does not support writing audio without TensorFlow.", 1)

    def flush(self) -> None:
        """Blocks until everything is in the file."""
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()


def _tensor_summary(name: str, value: np.ndarray, metadata: Any) -> summary_pb2.Summary:
    tensor = tensor_util.make_tensor_proto(value)
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, metadata=metadata, tensor=tensor)])


def _encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG of one image [H, W, C]; floats in [0, 1] are scaled as by `tf.image.convert_image_dtype`."""
    if image.dtype != np.uint8:
        image = np.clip(image.astype(np.float32) * 255.5, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, format="PNG")
    return stream.getvalue()


def _flatten(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Returns (dotted name, leaf) pairs; None becomes the empty string, which the plugin can show."""
    if isinstance(value, list | tuple):
        value = {str(index): item for index, item in enumerate(value)}
    if not hasattr(value, "items"):
        return [(name, "" if value is None else value)]
    return [leaf for key, item in value.items() for leaf in _flatten(item, f"{name}.{key}" if name else str(key))]
