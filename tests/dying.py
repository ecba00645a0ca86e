"""The command line in a process that kills itself when it touches files of a folder.

    python -m tests.dying COUNT[:SIGNAL] DELAY FOLDER FLAGS...

Python tells of every file that is opened, renamed, made or removed; at the COUNT-th of those
in FOLDER, and DELAY seconds later, the process is killed, or sends itself another signal than
SIGKILL. So it dies in the middle of whatever it writes, without a line of the program changed.
"""

import os
import runpy
import signal
import sys
import threading
import time


def die_at(count, delay, folder, number=signal.SIGKILL):
    touched = 0

    def die():
        time.sleep(delay)
        os.kill(os.getpid(), number)

    def hook(event, arguments):
        nonlocal touched
        if event == "open" or event.startswith(("os.", "shutil.")):
            paths = [os.fspath(a) for a in arguments if isinstance(a, str | os.PathLike)]
            if any(path.startswith(folder) for path in paths):
                touched += 1
                if touched == count:
                    die() if not delay else threading.Thread(target=die, daemon=True).start()

    sys.addaudithook(hook)


if __name__ == "__main__":
    count, _, name = sys.argv[1].partition(":")
    die_at(int(count), float(sys.argv[2]), sys.argv[3], signal.Signals[name or "SIGKILL"])
    sys.argv[1:] = sys.argv[4:]
    runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)
