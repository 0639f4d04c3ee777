"""What several processes must have in common and each can check by itself."""

import jax
import pytest

from dit_jax.errors import UserError
from dit_jax.system import together


@pytest.mark.parametrize(("all_of_them", "here", "refused"), [(16, 8, False), (15, 8, True), (15, 1, True)])
def test_processes_with_unequal_numbers_of_devices_are_refused(all_of_them, here, refused, monkeypatch):
    monkeypatch.setattr(together, "several", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2 if not refused else 8)
    monkeypatch.setattr(jax, "device_count", lambda: all_of_them)
    monkeypatch.setattr(jax, "local_device_count", lambda: here)
    if refused:
        with pytest.raises(UserError, match=f"there are 15 in 8 processes, {here} of them here; use the same"):
            together.check_devices()
    else:
        together.check_devices()
    monkeypatch.setattr(together, "several", lambda: False)
    together.check_devices()
