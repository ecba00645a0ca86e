"""The command line in a process that does not see what others write, as on a host of its own."""

import runpy

from experiments.runs import sharing

if __name__ == "__main__":
    sharing._sees = lambda mark: False
    runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)
