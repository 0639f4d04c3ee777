"""Train and sample Diffusion Transformers.

    python main.py --config configs/shapes.py --workdir runs/shapes
    python main.py --workdir runs/shapes --mode=sample --config.sample.n=100

`--config FILE[:ARG]` names the experiment; without it, the config is the workdir's. `--config.KEY=VALUE` overrides a
key of either. Exit code 2 is a user's error, with one line that tells it.
"""

import errno
import logging
import sys
from pathlib import Path

from absl import flags

from configs import default
from dit_jax import config as configs
from dit_jax import jobs
from dit_jax.errors import UserError
from dit_jax.experiment import resolve

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "The experiment: a Python file with get_config(), and its argument: FILE[:ARG].")
flags.DEFINE_string("workdir", None, "The run's folder: config, checkpoints, metrics, pictures.")
flags.DEFINE_enum("mode", "train", list(jobs.MODES), "What to do.")
flags.DEFINE_string("out", None, "Where sample writes; WORKDIR/samples unless given.")
# Full disks, folders that may not be written, names that are too long: all else is a bug and keeps its traceback.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


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
        jobs.MODES[FLAGS.mode](resolve(config), workdir, Path(FLAGS.out) if FLAGS.out else None)
    except (UserError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in USERS_ERRNO:
            raise
        print(f"error: {error.strerror}: {error.filename}; make room, or name another folder", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dit_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells its options there
    sys.exit(main(sys.argv))
