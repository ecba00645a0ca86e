"""What the environment asks of JAX, Matplotlib and the terminal, looked at before they start.

A mistake in it would end the program inside one of them, with their own tracebacks. So it is
told here, in one line and with exit status 2, when ``experiments`` is imported.
"""

import io
import os
import subprocess
import sys
from typing import NoReturn

# Settings of JAX, for those who debug, under which no run gets to its end.
DEBUGGING = {
    "JAX_DEBUG_NANS": (True,),
    "JAX_DEBUG_INFS": (True,),
    "JAX_DISABLE_JIT": (True,),
    "JAX_NUMPY_RANK_PROMOTION": ("raise",),
    "JAX_TRANSFER_GUARD": ("disallow", "disallow_explicit"),
}


def prepare() -> None:
    """Ends the program on variables that it cannot run under; drops those without a meaning."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek shows question marks
    # Figures are files and need no backend; a terminal has at least one column.
    os.environ.pop("MPLBACKEND", None)
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "").isdecimal() or int(os.environ[name]) < 1:
            os.environ.pop(name, None)
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
