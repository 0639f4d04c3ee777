"""Which moments are shown, and where they lie in the pictures."""

import numpy as np
from PIL import Image

from dit_jax.reporting.denoising import LAST_MS, MOMENTS, animation, frames_of, save_gif, spread, spread_log, strip


def test_spread_by_hand():
    assert spread(5, 3).tolist() == [0, 2, 4]
    assert spread(3, 8).tolist() == [0, 1, 2]


def test_spread_log_by_hand():
    """log2(t + 1) is 10, 3, 2, 1, 0 here: three evenly spaced values are 10, 5 and 0, and 3 is nearest to 5."""
    assert spread_log(np.array([1023, 7, 3, 1, 0]), 3).tolist() == [0, 1, 4]
    assert spread_log(np.array([500]), 4).tolist() == [0]


def test_frames_of_few_rows_are_all_and_of_many_both_ends_and_no_more_than_twice_the_moments():
    assert frames_of(np.arange(0, 40, 2)).tolist() == list(range(0, 40, 2))
    frames = frames_of(np.arange(1000))
    assert frames[0] == 0
    assert frames[-3:].tolist() == [997, 998, 999]
    assert len(frames) <= 2 * MOMENTS
    assert (np.diff(frames) > 0).all()


def moments(images=2, count=4):
    """x_t of gray levels 10, 20, ... by moment, x_0 1 above: [B, F, 4, 6, 3]."""
    levels = np.arange(10, 10 * count + 1, 10, dtype=np.uint8)
    x_t = np.broadcast_to(levels[None, :, None, None, None], (images, count, 4, 6, 3))
    return x_t, x_t + 1


def test_every_moment_of_both_is_in_the_strip_for_each_image_and_each_spacing():
    x_t, x_0 = moments()
    picture = strip(x_t, x_0, [999, 99, 0, -1], ["a", "b"], scale=3)
    for gray in (10, 20, 30, 40, 11, 21, 31, 41):
        pixels = (picture == gray).all(-1).sum()
        assert pixels >= 2 * 2 * 12 * 18, gray  # two spacings, two images, 12 x 18 pixels; letters may add some
    columns = [np.flatnonzero((picture == gray).all(-1).sum(0) >= 24)[0] for gray in (10, 20, 30, 40, 11, 41)]
    assert columns == sorted(columns)  # from noise to image, x_t before x_0


def test_the_animation_ends_with_the_image_and_repeats(tmp_path):
    x_t, x_0 = moments(count=3)
    frames = animation(x_t, x_0, scale=1)
    assert [frame.shape for frame in frames] == [(8, 12, 3)] * 3
    assert frames[-1][0, 0].tolist() == [30] * 3
    assert frames[-1][-1, -1].tolist() == [31] * 3
    assert len(animation(*(np.zeros((10, 60, 512, 512, 1), np.uint8) for _ in "ab"))) == 15  # 15 x 5.2 < 80 million
    save_gif(tmp_path / "new" / "a.gif", frames)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (3, 0)
        gif.seek(2)
        assert gif.info["duration"] == LAST_MS
