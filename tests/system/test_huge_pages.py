"""main.py asks for huge pages by restarting itself: in the same process, with the same arguments, once, if it helps."""

import json
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from dit_jax.system import huge_pages

ROOT = Path(__file__).parents[2]
PROBE = """
import ctypes, json, os, re, sys
from pathlib import Path
from dit_jax.system import huge_pages
os.environ["PIDS"] = os.environ.get("PIDS", "") + f"{os.getpid()} "
huge_pages.MODE = Path(os.environ["MODE"])
huge_pages.start_with_them()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
ctypes.memset(ctypes.c_void_p(libc.malloc(2**26)), 1, 2**26)
pages = Path("/proc/self/smaps_rollup")
huge = re.search(r"AnonHugePages: +(\\d+)", pages.read_text() if pages.exists() else "AnonHugePages: 0")[1]
told = {"pids": os.environ["PIDS"].split(), "huge_kib": int(huge), "optimize": sys.flags.optimize}
print(json.dumps(told | {"arguments": sys.argv[1:], "input": sys.stdin.read()}))
sys.exit(7)
"""
TAKES_TUNABLES_AWAY = """
import os, sys
real = os.execv
os.execv = lambda *words: (os.environ.pop("GLIBC_TUNABLES"), real(*words))
"""
FAILS = """
import os
def fail(*words): raise OSError("no")
os.execv = fail
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's pages")


@pytest.fixture
def start(tmp_path):
    """Returns a function that runs a script which starts as main.py does, and returns what the script printed."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")

    def run(*arguments, before="", python=(), script=("probe.py",), stdin="said", **environ):
        (tmp_path / "probe.py").write_text(before + PROBE)
        environ = {"PATH": "", "PYTHONPATH": str(ROOT), "MODE": str(tmp_path / "enabled"), **environ}
        command = [sys.executable, *python, *script, *arguments]
        settings = {"cwd": tmp_path, "env": environ, "input": stdin, "text": True, "timeout": 60}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, **settings)
        assert done.returncode == 7
        return json.loads(done.stdout)

    return run


def test_starts_anew_once_as_the_same_process_with_the_same_arguments(start):
    told = start("--a=b c", "", python=("-O", "-W", "ignore"))
    assert len(told["pids"]) == 2
    assert len(set(told["pids"])) == 1
    assert (told["arguments"], told["optimize"], told["input"]) == (["--a=b c", ""], 1, "said")


def test_a_module_starts_as_a_script_does_or_not_at_all(start):
    assert start("a", python=("-m",), script=("probe",))["arguments"] == ["a"]


@pytest.mark.parametrize("before", [TAKES_TUNABLES_AWAY, FAILS], ids=["taken away", "no exec"])
def test_it_goes_on_without(start, before):
    assert len(start(before=before)["pids"]) <= 2


def test_the_users_own_setting_stays(start):
    assert len(start(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")["pids"]) == 1


def test_a_program_from_stdin_or_inside_another_is_left_alone(start, tmp_path):
    assert len(start(script=("-",), stdin=PROBE)["pids"]) == 1
    (tmp_path / "host.py").write_text("import runpy\nrunpy.run_path('probe.py', run_name='__main__')\n")
    assert len(start(script=("host.py",), python=())["pids"]) == 1


@pytest.mark.skipif(
    not huge_pages.on_request() or tuple(map(int, (platform.libc_ver()[1] or "0").split("."))) < (2, 35),
    reason="needs a Linux that gives huge pages on request, and glibc 2.35",
)
def test_the_memory_comes_in_huge_pages(start):
    assert start()["huge_kib"] >= 2**13, "not even an eighth of 64 MiB"


def test_main_starts_anew(monkeypatch):
    def stop():
        raise InterruptedError

    monkeypatch.setattr(huge_pages, "start_with_them", stop)
    with pytest.raises(InterruptedError):
        runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


@pytest.mark.parametrize("executable", ["", None])
def test_without_a_python_to_start_it_goes_on(monkeypatch, executable):
    monkeypatch.setattr(huge_pages, "on_request", lambda: True)
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "argv", sys.orig_argv[-1:])
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail("started"))
    huge_pages.start_with_them()


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
