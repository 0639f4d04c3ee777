"""Packs what a lent machine without a network needs, wheels and CIFAR-10 in two halves, and unpacks it there.

    python -m benchmarks.pack --archive DIR            # here, once: fills carry/, which git ignores
    python -m benchmarks.pack --unpack carry --state DIR   # there; benchmarks/gpu.sh does it

A call carries at most 64 MiB, including the checkout, so each takes carry/wheels and one half; the machine keeps them
while it is held. The data is unpacked to the archive that its authors publish (the same records in the same order, but
other gzip bytes), and prepared from it as README says.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import codec
from benchmarks.commands import guarded
from dit_jax.data import cifar10
from dit_jax.data.preparation import is_prepared
from dit_jax.errors import UserError
from dit_jax.system.files import replacing

# What the lent machine's image lacks; versions are those of requirements.txt, if it names them.
WHEELS = [
    "tensorflow-datasets==4.9.10",
    "grain==0.2.18",
    "array_record==0.8.6",
    "clu==0.0.12",
    "ml_collections==1.1.0",
    "importlib_resources==7.1.0",
    "dm-tree",
    "immutabledict",
    "simple-parsing",
    "docstring_parser",
    "tensorflow-metadata",
    "googleapis-common-protos",
    "termcolor",
    "toml",
    "portpicker",
]
SOURCE_ONLY = ("promise",)  # has no wheel, so it is built here; it is pure Python
TARGET = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
HALVES, LIMIT, SHAPE = 2, 50_000_000, (32, 32)
CALL = 64 << 20  # bytes that a call takes in, including the checkout
LEAVE = "`git sparse-checkout set --no-cone '/*' '!/results/'`"
ARCHIVE = "cifar-10-binary.tar.gz"
FILES = [*cifar10.FILES["train"], *cifar10.FILES["test"]]  # 10,000 images each, as published


def download_wheels(folder: Path) -> None:
    """Fetches `WHEELS` for Python 3.12 on x86-64 with pip, except those that are there already; builds `SOURCE_ONLY`.

    Raises:
      UserError: pip failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [f"--platform={name}_x86_64" for name in PLATFORMS]
    for words in (
        ["download", "--no-deps", *TARGET, *platforms, f"--dest={folder}", *WHEELS],
        ["wheel", "--no-deps", f"--wheel-dir={folder}", *SOURCE_ONLY],
    ):
        if subprocess.run([*pip, *words]).returncode:
            raise UserError(f"pip {words[0]} failed, see above; it needs the package index")


def pack(archive: Path, out: Path) -> list[Path]:
    """Writes cifar10.0.xz and cifar10.1.xz, each with half of the archive's records, in its order; returns their paths.

    Raises:
      UserError: it is neither the archive that CIFAR-10's authors publish nor another of its layout.
    """
    contents = cifar10.read_archive(archive / ARCHIVE if archive.is_dir() else archive)
    flat = np.concatenate([np.frombuffer(contents[name], np.uint8) for name in FILES])
    records = flat.reshape(-1, cifar10.RECORD_BYTES)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for i, half in enumerate(np.array_split(records, HALVES)):
        images = half[:, 1:].reshape(-1, 3, *SHAPE).transpose(0, 2, 3, 1)
        packed = half[:, 0].tobytes() + codec.encode(images)
        if len(packed) >= LIMIT:
            raise UserError(f"half {i} has {len(packed):,} bytes, more than {LIMIT:,}; is this CIFAR-10?")
        written.append(out / half_name(i))
        with replacing(written[-1]) as temporary:
            temporary.write_bytes(len(half).to_bytes(4, "little") + packed)
    return written


def half_name(i: int) -> str:
    """Returns the file name of half `i`."""
    return f"cifar10.{i}.xz"


def unpack_half(path: Path) -> np.ndarray:
    """Returns records uint8 [n, 3073] as published: a label, then red, green and blue planes."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:4], "little")
    labels, images = np.frombuffer(raw[4 : 4 + n], np.uint8), codec.decode(raw[4 + n :], *SHAPE)
    return np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(n, -1)], axis=1)


def unpack(carry: Path, state: Path) -> bool:
    """Decodes the halves that were carried, and prepares `state`/data once both are there; returns whether it is."""
    state.mkdir(parents=True, exist_ok=True)
    for i in range(HALVES):
        kept = state / f"half{i}.npy"
        if (carry / half_name(i)).exists() and not kept.exists():
            with replacing(kept) as temporary, temporary.open("wb") as file:
                np.save(file, unpack_half(carry / half_name(i)))
    data_dir = state / "data"
    if is_prepared(data_dir / "cifar10" / cifar10.VERSION):
        return True
    missing = [half_name(i) for i in range(HALVES) if not (state / f"half{i}.npy").exists()]
    if missing:
        print(f"data: {' and '.join(missing)} not carried yet; call again with what is missing", flush=True)
        return False
    records = np.concatenate([np.load(state / f"half{i}.npy") for i in range(HALVES)])
    archive = write_archive(records, state)
    code = cifar10.main([f"--archive={archive}", f"--data_dir={data_dir}", "--allow_checksum_mismatch"])
    if code:
        raise UserError("the carried data could not be prepared, see above")
    return True


def write_archive(records: np.ndarray, state: Path) -> Path:
    """Writes cifar-10-binary.tar.gz, uncompressed, as it is read only once; returns its path."""
    path = state / ARCHIVE
    with replacing(path) as temporary, tarfile.open(temporary, "w:gz", compresslevel=0) as tar:
        names = [*FILES, cifar10.NAMES_FILE]
        parts = [part.tobytes() for part in np.array_split(records, len(FILES))]
        classes = "\n".join(cifar10.CLASS_NAMES).encode()
        for name, content in zip(names, [*parts, classes], strict=True):
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tracked() -> int:
    """Returns the bytes of the checkout's tracked files, which travel with each call."""
    names = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.split(b"\0")
    return sum(path.stat().st_size for path in map(Path, map(os.fsdecode, names)) if path.is_file())


def advice(size: int) -> str:
    """Returns what a call with a half carries, `size` bytes, and what to do if that is too much."""
    carried = f"a call with a half carries {size / 1e6:.1f} MB of at most {CALL / 1e6:.1f}"
    less = f": meanwhile exclude results/ with {LEAVE}, and afterwards `git sparse-checkout disable`"
    return carried + less * (size > CALL)


def main(argv: Sequence[str]) -> None:
    """Packs or unpacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=Path, help=f"{ARCHIVE} to pack, or a folder that has it")
    parser.add_argument("--out", type=Path, default=Path("carry"), help="folder to fill")
    parser.add_argument("--unpack", type=Path, help="folder that was carried, to unpack")
    parser.add_argument("--state", type=Path, help="folder to unpack to")
    flags = parser.parse_args(argv)
    if (flags.archive is None) == (flags.unpack is None) or (flags.unpack is None) != (flags.state is None):
        raise UserError("give --archive to pack, or --unpack and --state to unpack")
    if flags.unpack:
        unpack(flags.unpack, flags.state)
        return
    for path in pack(flags.archive, flags.out):
        print(f"{path}: {path.stat().st_size:,} bytes")
    download_wheels(flags.out / "wheels")
    size = sum(path.stat().st_size for path in (flags.out / "wheels").iterdir())
    print(f"{flags.out / 'wheels'}: {size:,} bytes")
    print(advice(size + max((flags.out / half_name(i)).stat().st_size for i in range(HALVES)) + tracked()))


if __name__ == "__main__":
    sys.exit(guarded(main))
