"""What the environment asks of JAX, Matplotlib and the terminal, looked at before they start.

A mistake in it would end the program inside one of them, with their own tracebacks. So it is
told here, in one line and with exit status 2, when ``experiments`` is imported.
"""

import importlib
import logging
import os
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from typing import NoReturn

# Settings of JAX, for those who debug, under which no run gets to its end.
DEBUGGING = {
    "JAX_DEBUG_NANS": (True,),
    "JAX_DEBUG_INFS": (True,),
    "JAX_DISABLE_JIT": (True,),
    "JAX_NUMPY_RANK_PROMOTION": ("raise",),
    "JAX_TRANSFER_GUARD": ("disallow", "disallow_explicit"),
}

# Variables that must be positive numbers to be of use, to Matplotlib, terminals and bars.
NUMBERS = {
    "COLUMNS": r"\d{1,4}",
    "LINES": r"\d{1,4}",
    "SOURCE_DATE_EPOCH": r"\d{1,11}",
    "TQDM_MININTERVAL": r"\d{1,6}(\.\d+)?",
}
FILES = 64  # open at once


def prepare(*, is_command: bool) -> None:
    """Ends the program on variables that it cannot run under; drops those without a meaning.

    Args:
      is_command: whether the process is one of our commands, whose users have no use for what
        libraries say to programmers, and whose figures are the same under all their settings.
    """
    _drop_variables()
    _open_files()
    if is_command:
        _be_quiet()
        _forget_matplotlibrc()
    _check_cache()
    _check_xla_flags()
    try:
        import jax
    except ValueError as error:  # JAX reads its variables when it is imported
        _refuse(f"{error}; accepted is what JAX documents, or to unset the variable")
    for name, refused in DEBUGGING.items():
        if os.environ.get(name) and getattr(jax.config, name.lower()) in refused:
            _refuse(
                f"{name}={os.environ[name]}: is for debugging JAX, and no run gets to its end "
                "under it; accepted is to unset it"
            )


def _drop_variables() -> None:
    """Drops what has no meaning. The form of bars is ours; figures are files, without backend."""
    for name in list(os.environ):
        form = NUMBERS.get(name)
        wrong = form and not (re.fullmatch(form, os.environ[name]) and float(os.environ[name]))
        ours = name.startswith("TQDM_") and name not in ("TQDM_DISABLE", *NUMBERS)
        if wrong or ours or name == "MPLBACKEND":
            del os.environ[name]


def _open_files() -> None:
    """Takes the right to as many open files as libraries, threads and checkpoints need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        _refuse(f"ulimit -n {hard}: so many files may be open at once; accepted is {FILES} or more")
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def _be_quiet() -> None:
    """Silences the warnings of libraries, unless ``-W`` or PYTHONWARNINGS asks for them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's; its errors are raised, too
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    for name in ("jax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _forget_matplotlibrc() -> None:
    """Keeps Matplotlib from reading a file of settings, of which a damaged one ends its import."""
    os.environ["MATPLOTLIBRC"] = os.devnull
    if not os.path.isfile("matplotlibrc"):
        return
    here = os.open(".", os.O_RDONLY)  # where a file of that name comes first, whatever is set
    os.chdir("/")
    try:
        importlib.import_module("matplotlib")
    finally:
        os.fchdir(here)
        os.close(here)


def _check_cache() -> None:
    """Says once that JAX cannot keep what it compiles, which it would say of every program."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not folder or "://" in folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except (OSError, ValueError) as error:
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
        reason = getattr(error, "strerror", None) or error
        print(
            f"warning: JAX_COMPILATION_CACHE_DIR={folder}: cannot be written ({reason}); what is "
            "compiled is not kept",
            file=sys.stderr,
        )


def _check_xla_flags() -> None:
    """XLA ends the process on flags that it does not know, so another process tries them."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not flags:
        return
    tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    told = [line for line in tried.stderr.splitlines() if "flag" in line.lower()]
    if tried.returncode and told:
        reason = told[0].split("] ")[-1]
        _refuse(f"XLA_FLAGS={flags}: {reason}; accepted are flags of XLA, or to unset it")


def _refuse(message: str) -> NoReturn:
    print(f"error: environment: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
