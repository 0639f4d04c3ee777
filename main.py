"""Train and sample Diffusion Transformers.

    python main.py --config configs/shapes.py --workdir runs/shapes
    python main.py --workdir runs/shapes --mode=sample --config.sample.n=100
    python main.py --workdir runs/shapes --mode=train_classifier
    python main.py --workdir runs/shapes --mode=evaluate
    python main.py --workdir runs/shapes --mode=report

`--config FILE[:ARG]` names the experiment (default: the workdir's own config); `--config.KEY=VALUE` overrides a key.
The exit code is 0; 2 for an error you can fix, reported in one line; 130 after Ctrl-C; or, if training ended early and
was saved, also 143 (SIGTERM), 129 (SIGHUP) or 75 (train.max_seconds): the same command resumes it. Clusters:
docs/cluster.md.
"""

import sys
import traceback

from dit_jax.system import huge_pages, interrupts, streams

if __name__ == "__main__":
    interrupts.end_silently()
    streams.open_closed()
    huge_pages.start_with_them()

from absl import flags

from configs import default
from dit_jax import errors
from dit_jax.jobs import modes
from dit_jax.settings import configs, resolving
from dit_jax.system import cluster, compilation, together
from dit_jax.system.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "FILE[:ARG], the experiment: a Python file with get_config(), which is executed.")
flags.DEFINE_string("workdir", None, "The run's folder: config, checkpoints, metrics, pictures.")
flags.DEFINE_enum("mode", "train", list(modes.MODES), "What to do.")
flags.DEFINE_string("out", None, "Output folder of sample (default: WORKDIR/samples) and report (default: WORKDIR).")
flags.DEFINE_string("images", None, "Judged by evaluate instead of samples: a folder of pictures or an NPZ file.")
flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT, process 0's machine and a free port there.")
flags.DEFINE_integer("num_processes", None, "Several processes: their number.")
flags.DEFINE_integer("process_id", None, "Several processes: the number of this one, from 0.")
flags.DEFINE_enum("cluster", "auto", ["auto", "none"], "Whether to detect Slurm, Open MPI and Kubernetes.")


def run(assignments: list[str]) -> int:
    """Runs the mode that the flags ask for and returns the exit code."""
    if not FLAGS.workdir:
        raise errors.UserError("--workdir is missing; give the run's folder, such as --workdir runs/shapes")
    workdir = expanded(FLAGS.workdir)
    config = configs.load(FLAGS.config) if FLAGS.config else configs.read(workdir)
    configs.check_keys(config, default.get_config(), FLAGS.config or str(configs.path_of(workdir)))
    configs.override(config, assignments)
    return modes.run(FLAGS.mode, resolving.resolve(config), workdir, FLAGS.out, FLAGS.images)


def main(argv: list[str]) -> int:
    """Parses the command line, joins the other processes, runs the mode and returns the exit code."""
    if {"-h", "--help"} & set(argv[1:]):
        print(f"{__doc__}\n{FLAGS.main_module_help()}")
        return 0
    try:
        assignments = configs.parse_flags(FLAGS, argv)
        place = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.cluster == "auto"
        cluster.join(*place, modes.trained_folder(FLAGS.mode, FLAGS.workdir))
        return together.end(run(assignments))
    except (Exception, KeyboardInterrupt) as error:
        code, line = errors.explain(error)
        if line is None and not together.several():
            raise
        return together.fail(code, lambda: streams.tell(line or traceback.format_exc(), error=True))


if __name__ == "__main__":
    errors.quieten_threads()
    streams.show_log()
    compilation.use_cache()
    interrupts.raise_again()
    interrupts.leave(main(sys.argv))
