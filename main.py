"""Train and sample Diffusion Transformers.

    python main.py --config configs/shapes.py --workdir runs/shapes
    python main.py --workdir runs/shapes --mode=sample --config.sample.n=100
    python main.py --workdir runs/shapes --mode=train_classifier
    python main.py --workdir runs/shapes --mode=evaluate
    python main.py --workdir runs/shapes --mode=report

`--config FILE[:ARG]` names the experiment; without it, the config is the workdir's. `--config.KEY=VALUE` overrides a
key of either. The exit code is 0; 2 after a user's error, with one line that tells it; or, when training ended early
and was saved, so that the same command goes on, 143 (SIGTERM), 130 (Ctrl-C) or 75 (train.max_seconds).
"""

import errno
import logging
import sys
from pathlib import Path

from absl import flags

from configs import default
from dit_jax import compilation, modes
from dit_jax import config as configs
from dit_jax.errors import UserError
from dit_jax.experiment import resolve
from dit_jax.stop import INTERRUPTED

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "The experiment: a Python file with get_config() (it is run), as FILE[:ARG].")
flags.DEFINE_string("workdir", None, "The run's folder: config, checkpoints, metrics, pictures.")
flags.DEFINE_enum("mode", "train", list(modes.MODES), "What to do.")
flags.DEFINE_string("out", None, "Where sample writes (else WORKDIR/samples) and report (else WORKDIR).")
flags.DEFINE_string("images", None, "What evaluate judges instead of samples: a folder of pictures or an NPZ file.")
# Full disks, folders that may not be written, names that are too long: all else is a bug and keeps its traceback.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


def main(argv: list[str]) -> int:
    """Parses the command line, runs the mode and returns the exit code."""
    if {"-h", "--help"} & set(argv[1:]):
        print(f"{__doc__}\n{FLAGS.main_module_help()}")
        return 0
    try:
        assignments = configs.parse_flags(FLAGS, argv)
        if not FLAGS.workdir:
            raise UserError("--workdir is missing; name the run's folder, such as --workdir runs/shapes")
        workdir = Path(FLAGS.workdir)
        config = configs.load(FLAGS.config) if FLAGS.config else configs.read(workdir)
        configs.check_keys(config, default.get_config(), FLAGS.config or str(configs.path_of(workdir)))
        configs.override(config, assignments)
        out, images = (Path(path) if path else None for path in (FLAGS.out, FLAGS.images))
        return modes.run(FLAGS.mode, resolve(config), workdir, out, images)
    except (UserError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in USERS_ERRNO:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}; make room, or name another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def tell_unraisable(told) -> None:
    """Python's own, but for what TensorStore's threads meet when a save fails; that is raised elsewhere too."""
    if "Event loop is closed" not in str(told.exc_value):
        sys.__unraisablehook__(told)


if __name__ == "__main__":
    sys.unraisablehook = tell_unraisable
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dit_jax").setLevel(logging.INFO)
    for library in ("absl", "asyncio"):  # Orbax tells its options there, and errors that it raises too
        logging.getLogger(library).setLevel(logging.CRITICAL)
    compilation.use_cache()
    sys.exit(main(sys.argv))
