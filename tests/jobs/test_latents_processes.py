"""Real processes that encode latents: killed or signalled in the middle, or two at once on one data_dir."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from dit_jax.data import latents, preparation, shapes
from tests import process

SETTINGS = ["model.latents=true", "model.patch_size=2", "autoencoder.width=4", "autoencoder.steps=2", "train.steps=4",
            "autoencoder.batch_size=8", "train.batch_size=8", "train.log_every=2", "sample.clip_x_0=false"]  # fmt: skip
COUNT, SHAPE, PARTS = 64, (8, 8, 4), 8  # images, latents of one, files
# main.py with small files of latents and slow reading of images.
PROGRAM = """
import runpy, sys, time
from dit_jax.data import latents
sys.path.insert(0, ".")
latents.PART_BYTES = {part_bytes}
reader = latents.Reader
latents.Reader = lambda read, *args, **kwargs: reader(lambda i: time.sleep({seconds}) or read(i), *args, **kwargs)
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, compiled programs, the program, and an uninterrupted run in `whole`."""
    folder = tmp_path_factory.mktemp("encodings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NUM_EXAMPLES", {"train": COUNT, "test": 10})
        shapes.prepare(folder / "data")
    part_bytes = latents.nbytes(COUNT, SHAPE) // PARTS
    (folder / "program.py").write_text(PROGRAM.format(part_bytes=part_bytes, seconds=0.3))
    for mode in ("train_autoencoder", "train"):
        code, told = process.finish(start(folder, "whole", "data", f"--mode={mode}"))
        assert code == 0, told
    assert len(parts(folder / "data")) == PARTS
    return folder


def start(place, workdir, data, *flags):
    own = {"program": place / "program.py", "flags": flags}
    return process.start(place / data, place / workdir, place / "cache", *SETTINGS, **own)


def parts(data):
    """Returns the bytes of each file of latents, by its name."""
    return {path.name: path.read_bytes() for path in data.glob("latents/*/*.array_record")}


def written(data):
    """Returns the modification time of each file of latents, by its name."""
    return {path.name: path.stat().st_mtime_ns for path in data.glob("latents/*/*.array_record")}


def new_run(place, name, data):
    """Prepares a run with the autoencoder of `whole`; `data` gets a copy of the images, without latents."""
    shutil.copytree(place / "whole/autoencoder", place / name / "autoencoder")
    if not (place / data).exists():
        shutil.copytree(place / "data", place / data, ignore=shutil.ignore_patterns("latents"))


def assert_whole(place, name, data):
    """Asserts that the run and its latents equal those of `whole`, and that no other file lies beside the latents."""
    assert parts(place / data) == parts(place / "data")
    assert sorted(path.suffix for path in (place / data).glob("latents/*/*")) == [""] + PARTS * [".array_record"]
    states = [process.final_state(place / run) for run in (name, "whole")]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_an_encoding_that_is_ended_goes_on_with_the_parts_that_are_kept(number, code, place):
    name, data = f"run {code}", f"data {code}"
    new_run(place, name, data)
    run = start(place, name, data)
    half_made = lambda: any((place / data).glob("latents/*/*.tmp"))  # noqa: E731
    process.wait_for(lambda: len(parts(place / data)) >= 2 and half_made(), run)
    run.send_signal(number)
    got, told = process.finish(run)
    assert got == code, told
    kept = written(place / data)
    assert 2 <= len(kept) < PARTS
    assert half_made() == (number == signal.SIGKILL)  # the kill was in the middle of one
    before = COUNT // PARTS * len(kept)
    if number == signal.SIGTERM:
        assert told[-1].startswith(f"latents of {before} of {COUNT} images are kept in {place / data}")
    code, told = process.finish(start(place, name, data))
    assert code == 0, told
    assert any(f"encoding {COUNT - before} images as latents" in line for line in told), told
    assert f"image {before}/{COUNT}  compiling" in told
    assert kept.items() <= written(place / data).items()
    assert_whole(place, name, data)


@pytest.mark.slow
def test_of_two_runs_on_one_data_dir_one_encodes_and_the_other_takes_what_it_made(place):
    """Both wait until this process is done with the folder."""
    names, told = ("one", "other"), []
    for name in names:
        new_run(place, name, "shared")
    (folder,) = (place / "data/latents").iterdir()
    with preparation.only_one(place / "shared/latents" / folder.name, "*.tmp"):
        runs = [start(place, name, "shared") for name in names]
        for run in runs:
            lines = iter(run.stderr.readline, "")
            assert any("waiting for another process that is preparing data" in line for line in lines)
    for run in runs:
        code, lines = process.finish(run)
        assert code == 0, lines
        told += lines
    assert sum(f"encoding {COUNT} images as latents" in line for line in told) == 1
    for name in names:
        assert_whole(place, name, "shared")


@pytest.mark.slow
def test_of_two_processes_of_one_run_the_first_one_encodes(place):
    new_run(place, "pair", "of both")
    folders = place / "of both", place / "pair", place / "cache"
    told = []
    for code, lines in map(process.finish, process.start_pair(*folders, *SETTINGS)):
        assert code == 0, lines
        told.append(sum(f"encoding {COUNT} images as latents" in line for line in lines))
    assert told == [1, 0]
    assert len(parts(place / "of both")) == 1
    losses = [
        [json.loads(line)["loss"] for line in (place / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("pair", "whole")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
