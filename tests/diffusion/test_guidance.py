import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from dit_jax.diffusion.guidance import denoiser, guidance_interval, guided, towards_labels
from dit_jax.diffusion.objective import target_of
from dit_jax.diffusion.schedule import Schedule, make_schedule

NULL = 10
TABLES = Schedule(alpha=np.array([0.8, 0.6]), sigma=np.array([0.6, 0.8]))


def make_network():
    """Returns a network whose channels all depend on x, t and the label, and the list of its calls' batch sizes."""
    calls = []

    def network(x, t_B, labels_B):
        calls.append(x.shape[0])
        condition = jnp.sin(labels_B * 1.7 + 0.3) + 0.01 * t_B
        return jnp.tanh(x) * (1 + condition)[:, None, None, None] + condition[:, None, None, None] * x**2

    return network, calls


@pytest.fixture
def batch():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 5))
    return x, jnp.array([1, 50, 999]), jnp.array([2, 7, 2])


def test_scale_1_is_the_conditional_network_in_one_single_pass(batch):
    network, calls = make_network()
    x, t, labels = batch
    out = guided(network, labels, NULL, 1.0)(x, t)
    assert calls == [3]
    np.testing.assert_array_equal(out, network(x, t, labels))


def test_guidance_is_one_doubled_pass(batch):
    network, calls = make_network()
    x, t, labels = batch
    guided(network, labels, NULL, 3.0)(x, t)
    assert calls == [6]


@pytest.mark.parametrize("scale", [0.5, 3.0, 7.5])
def test_guidance_equals_two_passes_in_all_channels(batch, scale):
    """Ho & Salimans 2022, equation 6: (1 + w) cond - w uncond with w = scale - 1."""
    network, _ = make_network()
    x, t, labels = batch
    conditional, unconditional = network(x, t, labels), network(x, t, jnp.full(3, NULL))
    out = guided(network, labels, NULL, scale)(x, t)
    np.testing.assert_allclose(out, scale * conditional - (scale - 1) * unconditional, rtol=1e-4, atol=1e-5)
    assert (np.abs(out - conditional).max(axis=(0, 1, 2)) > 1e-2).all()  # channel by channel


def test_scale_0_is_unconditional(batch):
    network, _ = make_network()
    x, t, labels = batch
    np.testing.assert_allclose(guided(network, labels, NULL, 0.0)(x, t), network(x, t, jnp.full(3, NULL)), rtol=1e-6)


def test_interval_by_hand():
    """T = 10, from 0.3 to 0.7, which floats do not hold exactly: t / T = 0.3, 0.4, ... 0.7."""
    np.testing.assert_array_equal(np.flatnonzero(guidance_interval(10, 0.3, 0.7)), [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(np.flatnonzero(guidance_interval(100, 0.29, 0.57)), np.arange(29, 58))
    assert guidance_interval(1000, 0.0, 1.0).all()


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_outside_the_interval_is_one_single_conditional_pass(batch, scale):
    """Counts the passes at run time, by their batch size: guided at 3, 4 and 5 of 10, conditional elsewhere."""
    network, _ = make_network()
    ran = []

    def counting(x, t_B, labels_B):
        io_callback(lambda t: ran.append(len(t)), None, t_B, ordered=True)
        return network(x, t_B, labels_B)

    x, _, labels = batch
    always, plain = guided(network, labels, NULL, scale), guided(network, labels, NULL, 1.0)
    predict = jax.jit(guided(counting, labels, NULL, scale, guidance_interval(10, 0.3, 0.55)))
    for t in range(10):
        t_B = jnp.full(3, t)
        out = predict(x, t_B)
        jax.effects_barrier()
        inside = t in (3, 4, 5)
        np.testing.assert_allclose(out, (always if inside else plain)(x, t_B), rtol=1e-5, atol=1e-6)
        assert ran.pop() == (6 if inside and scale else 3)
        assert not ran


def test_the_whole_interval_and_scale_1_change_nothing(batch):
    x, t, labels = batch
    for scale, interval, passes in ((3.0, np.ones(1000, bool), [6]), (1.0, guidance_interval(1000, 0.2, 0.4), [3])):
        network, calls = make_network()
        out = guided(network, labels, NULL, scale, interval)(x, t)
        assert calls == passes
        np.testing.assert_array_equal(out, guided(network, labels, NULL, scale)(x, t))


def test_guidance_by_hand():
    """Conditional 5, unconditional 2, scale 3: 2 + 3 * 3 = 11."""
    network = lambda x, t, labels: jnp.where(labels == NULL, 2.0, 5.0)[:, None, None, None] * jnp.ones_like(x)  # noqa: E731
    out = guided(network, jnp.array([4]), NULL, 3.0)(jnp.zeros((1, 2, 2, 3)), jnp.array([0]))
    np.testing.assert_array_equal(out, np.full((1, 2, 2, 3), 11.0))


def test_denoiser_reads_the_prediction():
    """t = 0: x = 0.8 x_0 + 0.6 eps. The noise 0.5 in x = 1 leaves x_0 = (1 - 0.3) / 0.8."""
    x_0, eps = denoiser(lambda x, t: 0 * x + 0.5, TABLES, "eps")(jnp.ones((1, 1, 1, 1)), jnp.array([0]))
    np.testing.assert_allclose(x_0.ravel(), 0.7 / 0.8, rtol=1e-6)
    np.testing.assert_allclose(eps.ravel(), 0.5, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_clipping_keeps_x_0_in_range_and_eps_agrees(prediction):
    """x = 3, 0.4, -2.8 at t = 0 with true (x_0, eps) = (3, 1), (0.5, 0), (-2, -2): x_0 is clipped to 1, 0.5, -1."""
    x_0, eps = np.array([3.0, 0.5, -2.0]), np.array([1.0, 0.0, -2.0])
    x = 0.8 * x_0 + 0.6 * eps
    output = {"eps": eps, "x0": x_0, "v": 0.8 * eps - 0.6 * x_0, "velocity": eps - x_0}[prediction]
    as_images = lambda a: jnp.asarray(a, jnp.float32).reshape(3, 1, 1, 1)  # noqa: E731
    denoise = denoiser(lambda x, t: as_images(output), TABLES, prediction, clip_x_0=True)
    clipped, agreeing = denoise(as_images(x), jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(clipped.ravel(), [1.0, 0.5, -1.0], rtol=1e-6)
    np.testing.assert_allclose(agreeing.ravel(), [(2.4 + 0.6 - 0.8) / 0.6, 0.0, (-2.8 + 0.8) / 0.6], atol=1e-5)
    free, _ = denoiser(lambda x, t: as_images(output), TABLES, prediction)(as_images(x), jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(free.ravel(), x_0, rtol=1e-5)  # off unless asked for


def test_what_a_classifier_moves_is_clipped_too():
    """x = 0.4 at t = 0, with x_0 = 0.5 moved by 2 to 2.5: clipped to 1, so 0.8 x 1 + 0.6 eps = 0.4."""
    shift = lambda x, t: (0 * x + 2, 0 * x - 7)  # noqa: E731
    denoise = denoiser(lambda x, t: 0 * x + 0.5, TABLES, "x0", clip_x_0=True, shift=shift)
    x_0, eps = denoise(jnp.full((1, 1, 1, 1), 0.4), jnp.array([0]))
    np.testing.assert_allclose([x_0.item(), eps.item()], [1, -0.4 / 0.6], rtol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity"])
def test_no_nan_where_nothing_of_the_image_is_left(prediction):
    """With alpha = 0, eps is x itself, whatever x_0 is predicted."""
    end = Schedule(alpha=np.array([0.6, 0.0]), sigma=np.array([0.8, 1.0]))
    x = jnp.array([2.0, -0.5]).reshape(2, 1, 1, 1)
    denoise = denoiser(lambda x, t: 0 * x + 7.0, end, prediction, clip_x_0=True)
    x_0, eps = denoise(x, jnp.array([1, 1]))
    np.testing.assert_allclose(eps, x, rtol=1e-6)
    sign = 1 if prediction == "x0" else -1  # v = -x_0 there, and velocity = x - x_0
    np.testing.assert_allclose(x_0.ravel(), [sign, sign])


MEANS, STD = np.array([-0.5, 0.25, 1.0]), 0.3  # of three classes, each a Gaussian of one pixel
T = 20
OF_X_T = jnp.linspace(-1.5, 1.5, 13)[:, None, None, None]


def posterior(schedule, t, x_t):
    """Returns log p(x_t | class) up to a constant and E[x_0 | x_t, class], both float64 [13, classes], by hand."""
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    x = np.asarray(x_t, np.float64).reshape(-1, 1)
    variance = alpha**2 * STD**2 + sigma**2
    return -((x - alpha * MEANS) ** 2) / (2 * variance), MEANS + alpha * STD**2 / variance * (x - alpha * MEANS)


def as_images(values):
    return jnp.asarray(values, jnp.float32).reshape(OF_X_T.shape)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("linear", "eps"), ("linear", "v"), ("cosine", "x0"), ("rectified", "velocity"), ("rectified", "x0")],
)
@pytest.mark.parametrize("t", [1, T // 2, T - 2])
def test_an_exact_classifier_makes_the_conditional_denoiser_of_the_unconditional_one(name, prediction, t):
    """Bayes: grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t)."""
    schedule = make_schedule(name, T, 5e-3, 0.5)
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    log_p, x_0_of_class = posterior(schedule, t, OF_X_T)
    share = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)
    x_0 = as_images((share * x_0_of_class).sum(1))
    t_B, labels = jnp.full(len(OF_X_T), t), jnp.arange(len(OF_X_T)) % 4  # 3 is "no class"

    def predict(x_t, t_B):
        return target_of(schedule, prediction, x_0, (x_t - alpha * x_0) / sigma, t_B)

    def logits(x_t, t_B):
        variance = alpha**2 * STD**2 + sigma**2
        return -((x_t.reshape(-1, 1) - alpha * MEANS[None]) ** 2) / (2 * variance) + 7  # any constant would do

    shift = towards_labels(logits, labels, schedule, 1.0)
    found_x_0, found_eps = denoiser(predict, schedule, prediction, shift=shift)(OF_X_T, t_B)
    by_class = np.concatenate([x_0_of_class, np.asarray(x_0).reshape(-1, 1)], axis=1)
    expected = as_images(by_class[np.arange(len(labels)), labels])
    np.testing.assert_allclose(found_x_0, expected, atol=2e-5)
    np.testing.assert_allclose(found_eps, (OF_X_T - alpha * expected) / sigma, atol=2e-5)


def test_the_classifier_moves_nothing_where_no_image_is_left_nor_outside_of_the_interval():
    schedule = make_schedule("rectified", 4, 1e-4, 0.02)
    interval = np.array([False, True, True, True])
    shift = towards_labels(
        lambda x_t, t_B: x_t.reshape(-1, 1) * MEANS[None], jnp.zeros(4, int), schedule, 3.0, interval
    )
    x_0, eps = shift(jnp.ones((4, 1, 1, 1)), jnp.arange(4))
    assert [bool(value) for value in np.abs(x_0).ravel() > 0] == [False, True, True, False]
    assert [bool(value) for value in np.abs(eps).ravel() > 0] == [False, True, True, False]
    # alpha and sigma are 1/2 at t = 1: x_0 moves by scale (1/4) / (1/2) = 1.5 times the gradient, eps by -1.5 times it.
    np.testing.assert_allclose(x_0[1], -eps[1], rtol=1e-6)
    p = np.exp(MEANS) / np.exp(MEANS).sum()
    np.testing.assert_allclose(x_0[1], 1.5 * (MEANS[0] - (p * MEANS).sum()), rtol=1e-5)
