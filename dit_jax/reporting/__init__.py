"""Shows runs to people: scalars and pictures, grids, plots and reports.

`clu.metric_writers` (and with it `clu.periodic_actions`) imports TensorFlow for one class. Importing this package puts
a stand-in in that class's place when TensorFlow is absent, so that clu runs unmodified either way. This must happen
before those two modules of clu are imported, so it happens here: no module below can be too late.
"""

from dit_jax.reporting import summary_writer

summary_writer.stand_in_for_tensorflow()
