"""main.py asks for huge pages by starting anew: the same process and arguments, once, and only where it helps."""

import json
import subprocess
import sys

import pytest

from dit_jax import huge_pages

SCRIPT = """
import ctypes, json, os, re, sys
from pathlib import Path
from dit_jax import huge_pages
before = os.environ.get("TOLD")
os.environ["TOLD"] = str(os.getpid())
if len(sys.argv) > 3:
    huge_pages.MODE = Path(sys.argv[3])
huge_pages.start_with_them()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
ctypes.memset(ctypes.c_void_p(libc.malloc(2**26)), 1, 2**26)
huge = int(re.search(r"AnonHugePages: +(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])
print(json.dumps({"arguments": sys.argv[1:3], "same": before == str(os.getpid()), "huge_kib": huge}))
"""


def start(tmp_path, *arguments, **environ):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-c", f"exec(open({str(script)!r}).read())", *arguments]
    done = subprocess.run(command, env={"PATH": "", **environ}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def on_request(tmp_path):
    mode = tmp_path / "enabled"
    mode.write_text("always [madvise] never\n")
    return mode


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's pages")
class TestStart:
    def test_starts_anew_once_as_the_same_process_with_the_same_arguments(self, tmp_path, on_request):
        told = start(tmp_path, "--a=b c", "", str(on_request))
        assert told["same"], "not started anew, or as another process"
        assert told["arguments"] == ["--a=b c", ""]

    def test_the_users_own_setting_stays(self, tmp_path, on_request):
        own = {huge_pages.VARIABLE: "glibc.malloc.hugetlb=0"}
        assert not start(tmp_path, "a", "b", str(on_request), **own)["same"]

    @pytest.mark.skipif(not huge_pages.on_request(), reason="this machine's Linux does not give huge pages on request")
    def test_the_memory_comes_in_huge_pages(self, tmp_path):
        told = start(tmp_path, "a", "b")
        assert told["same"]
        assert told["huge_kib"] >= 2**15, "not even half of 64 MiB"


@pytest.mark.parametrize(
    ("mode", "environ", "expected"),
    [
        ("always [madvise] never", {}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        (
            "always [madvise] never",
            {"GLIBC_TUNABLES": "glibc.rtld.nns=2"},
            {"GLIBC_TUNABLES": "glibc.rtld.nns=2:glibc.malloc.hugetlb=1"},
        ),
        ("always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {}),
        ("[always] madvise never", {}, {}),
        ("always madvise [never]", {}, {}),
        (None, {}, {}),
    ],
)
def test_wanted(monkeypatch, tmp_path, mode, environ, expected):
    file = tmp_path / "enabled"
    if mode is not None:
        file.write_text(mode)
    monkeypatch.setattr(huge_pages, "MODE", file)
    assert huge_pages.wanted(environ) == expected
