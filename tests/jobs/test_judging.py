"""The warning of an evaluation about too few real images."""

from dit_jax.jobs.judging import floor_warning


def test_fewer_real_images_than_samples_are_no_floor():
    assert floor_warning(100, 100) is None
    assert floor_warning(101, 100) is None
    assert floor_warning(9, 100) is None  # that has no figures, and another warning
    told = floor_warning(30, 300)
    assert told is not None
    assert "the real figures come from 30 test images, those of the samples from 300" in told
