"""Sums over the training images: computed once per network and data set, and never reused for another of either."""

from types import SimpleNamespace

import numpy as np
import pytest

from dit_jax.data import datasets, image_folder
from dit_jax.data.datasets import Records, Split
from dit_jax.evaluation import evaluate
from dit_jax.evaluation.features import Extractor
from dit_jax.jobs import references
from tests import tiny
from tests.data.test_image_folder import paint

EXTRACTOR = Extractor("classifier", "0" * 64, lambda images: (images[:, 0, :, 0].astype(np.float32), np.zeros((1, 1))))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Returns asked(...), which returns the reference; `asked.sums` counts how many had to be computed."""
    tiny.install(monkeypatch)

    def reference(config=None, extractor=EXTRACTOR, records=None):
        records = records or tiny.records()
        config = config or tiny.config(data__data_dir=tmp_path)

        def sum_up():
            reference.sums += 1
            return evaluate.summarize(extractor.extract, (part.images for part in records.chunks()), records.count,
                                      records.labels())  # fmt: skip

        return references.reference_of(config, extractor, records, sum_up)

    reference.sums = 0
    return reference


def files(tmp_path):
    return sorted((tmp_path / "references").iterdir())


def same(a, b):
    arrays = [(x.moments.count, x.moments.mean_D, x.moments.scatter_DD, x.features_ND, x.labels_N) for x in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*arrays, strict=True))


def test_the_second_time_they_are_those_of_the_first_to_the_bit(asked, tmp_path):
    first, second = asked(), asked()
    assert asked.sums == 1
    assert same(first, second)
    assert len(files(tmp_path)) == 1
    features = tiny.split().images[:, 0, :, 0].astype(np.float64)
    np.testing.assert_allclose(second.moments.covariance_DD, np.cov(features, rowvar=False), rtol=1e-12)
    assert second.count == len(second.features_ND) == 40
    assert second.features_ND.dtype == np.float32
    assert second.labels_N.tolist() == tiny.split().labels.tolist()


def test_other_weights_features_or_images_have_their_own(asked, tmp_path):
    images, labels = tiny.split()
    other = 255 - images
    read = lambda indices: Split(other[indices], labels[indices])  # noqa: E731
    negative = Records(len(other), images.shape[1:], read, lambda indices: labels[indices])
    asked()
    asked(extractor=Extractor("classifier", "1" * 64, EXTRACTOR.extract))
    asked(extractor=Extractor("inception", "0" * 64, EXTRACTOR.extract))
    found = asked(records=negative)
    asked(records=tiny.records().first(39))
    assert asked.sums == len(files(tmp_path)) == 5
    np.testing.assert_allclose(found.moments.mean_D, 255 - asked().moments.mean_D)
    assert asked.sums == 5


def test_another_picture_in_a_folder_is_noticed_wherever_it_is(asked, tmp_path):
    """Also by an evaluation, which takes the folder as it is; the probe reads only 64 of the 200 pictures."""
    root = tmp_path / "root"
    for i in range(200):
        paint(root / "cat" / f"{i:03}.png", i)
    config = SimpleNamespace(data=SimpleNamespace(name=image_folder.NAME, data_dir=tmp_path))
    folder = image_folder.Folder(str(root), 8, ("cat",))

    def mean():
        train = datasets.open_split(datasets.Source(image_folder.NAME, tmp_path, folder))
        assert asked(config, records=train).count == train.count
        return asked(config, records=train).moments.mean_D, train.load().images[:, 0, :, 0].mean(0), train.probe()

    first = mean()
    paint(root / "cat" / "101.png", 999)
    second = mean()
    assert asked.sums == 2
    assert first[2] == second[2]  # so it is not the probe that tells them apart
    for summed, true, _ in (first, second):
        np.testing.assert_allclose(summed, true)
    assert (first[0] != second[0]).any()


@pytest.mark.parametrize("damage", ["cut", "flipped", "another count", "no archive", "empty"])
def test_a_damaged_file_is_told_and_made_again(asked, tmp_path, damage, caplog):
    first = asked()
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[data.index(first.features_ND.tobytes()) + 5] ^= 1
    if damage == "another count":
        np.savez(path, count=41, mean=first.moments.mean_D, scatter=first.moments.scatter_DD,
                 features=first.features_ND, labels=first.labels_N)  # fmt: skip
    else:
        path.write_bytes({"cut": data[:-100], "flipped": data, "no archive": b"x" * 99, "empty": b""}[damage])
    assert same(asked(), first)
    assert asked.sums == 2
    assert "the training images are processed again" in caplog.text
    assert same(asked(), first)
    assert asked.sums == 2


def test_where_nothing_can_be_kept_the_evaluation_goes_on(asked, tmp_path, caplog):
    (tmp_path / "references").write_text("a file")
    assert same(asked(), asked())
    assert asked.sums == 2
    assert caplog.text.count("the next evaluation processes the training images again") == 2
