"""The experiments of gf_jax: flags, data sets, run directories, figures."""

import sys

from experiments.process import interruption, streams

# Python calls it so while it looks for the module of a command, ``python -m experiments.main``.
IS_COMMAND = sys.argv[:1] == ["-m"]
if IS_COMMAND:
    streams.install()
    interruption.watch()  # what follows takes a second or two

from experiments.process import environment  # noqa: E402

environment.prepare(is_command=IS_COMMAND)
