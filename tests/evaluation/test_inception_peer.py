"""Against torch-fidelity, an independent Inception in PyTorch, with the same random weights.

Needs requirements-peers.txt: run by `pytest -m slow tests/evaluation/test_inception_peer.py`, skipped without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.evaluation.distances import Moments, frechet_distance, inception_score, mmd2
from dit_jax.evaluation.inception_weights import convert, parameter_shapes
from dit_jax.evaluation.neighbours import neighbour_scores
from dit_jax.evaluation.torch_file import read_tensors
from dit_jax.models.inception import Inception, resize

torch = pytest.importorskip("torch")
torch_fidelity = pytest.importorskip("torch_fidelity")
pytestmark = pytest.mark.slow


def random_state(torch):
    """Returns weights by PyTorch's names and shapes, which keep activations near 1, with batch norms that matter."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def uniform(n, low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    def walk(prefix, tree):
        for name, child in tree.items():
            if "kernel" not in child:
                walk(f"{prefix}{name}.", child)
                continue
            height, width, inputs, outputs = child["kernel"].shape
            unit = prefix + name
            noise = torch.randn((outputs, inputs, height, width), generator=generator)
            state[f"{unit}.conv.weight"] = noise * (2 / (height * width * inputs)) ** 0.5
            state[f"{unit}.bn.weight"] = uniform(outputs, 0.7, 1.3)
            state[f"{unit}.bn.bias"] = uniform(outputs, -0.2, 0.3)
            state[f"{unit}.bn.running_mean"] = uniform(outputs, -0.2, 0.2)
            state[f"{unit}.bn.running_var"] = uniform(outputs, 0.5, 1.5)
            state[f"{unit}.bn.num_batches_tracked"] = torch.tensor(0)

    tree = dict(parameter_shapes())
    del tree["fc"], tree["fc_bias"]
    walk("", tree)
    state["fc.weight"] = torch.randn((1008, 2048), generator=generator) / 45
    state["fc.bias"] = torch.randn(1008, generator=generator)
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Returns a file of random weights as PyTorch saved them before 1.6, like the published one."""
    folder, state = tmp_path_factory.mktemp("weights"), random_state(torch)
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder / "legacy.pth"


@pytest.fixture(scope="module")
def images():
    """CIFAR-sized images with structure: random blocks, a gradient and noise."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 200, size=(6, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    return (blocks + np.arange(32)[:, None] + rng.integers(0, 24, size=(6, 32, 32, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def ours(file, images):
    variables = convert(read_tensors(file.read_bytes()), file)
    return jax.device_get(jax.jit(Inception().apply)(variables, jnp.asarray(images)))


@pytest.fixture(scope="module")
def theirs(file, images):
    """The peer's outputs; it loads the state dict strictly, by its own names and shapes."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased", "logits"]
    network = FeatureExtractorInceptionV3("peer", names, feature_extractor_weights_path=str(file))
    with torch.no_grad():
        outputs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return dict(zip(names, (np.asarray(output) for output in outputs), strict=True))


def relative_error(actual, expected):
    """Returns the largest error relative to the expected values' spread over images: a common offset hides nothing."""
    error = np.abs(actual - expected).max() / np.abs(expected - expected.mean(0)).max()
    print(f"relative error {error:.2e}")
    return error


def test_a_file_reads_as_pytorch_reads_it(file):
    expected, tensors = torch.load(file), read_tensors(file.read_bytes())
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name].numpy())


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (299, 299), (400, 333)])
def test_resize(shape):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = np.random.default_rng(0).integers(0, 256, size=(2, *shape, 3)).astype(np.float32)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = interpolate_bilinear_2d_like_tensorflow1x(tensor, size=(299, 299), align_corners=False)
    assert relative_error(np.asarray(resize(jnp.asarray(images))), expected.numpy().transpose(0, 2, 3, 1)) < 1e-5


def test_features(ours, theirs):
    assert relative_error(ours.features, theirs["2048"]) < 1e-3


def test_logits(ours, theirs):
    assert relative_error(ours.logits, theirs["logits"]) < 1e-3
    assert relative_error(ours.unbiased_logits, theirs["logits_unbiased"]) < 1e-3


def test_distances_from_the_same_features():
    """FID, KID, Inception Score, precision and recall against torch-fidelity's own functions, on random features."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(64, 64)) / 8
    x, y = (rng.normal(size=(300, 64)) @ mixing * scale + 0.1 for scale in (1, 1.2))
    tensors = [torch.from_numpy(z) for z in (x, y)]

    statistics = [metric_fid.fid_features_to_statistics(tensor) for tensor in tensors]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(fid, rel=1e-8)

    expected = metric_kid.kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=300, verbose=False)
    assert mmd2(x, y) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)

    expected = metric_isc.isc_features_to_metric(tensors[0], splits=1)
    assert inception_score(x, splits=1).mean == pytest.approx(expected["inception_score_mean"], rel=1e-9)

    precision, recall = metric_prc.calculate_precision_recall_full(*tensors[::-1], neighborhood=3)
    scores = neighbour_scores(x, y, precision_k=3)
    assert 0 < precision < recall < 1
    assert (scores.precision, scores.recall) == pytest.approx((precision, recall), abs=1e-6)
