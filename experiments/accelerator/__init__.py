"""What only a device shows: checked and measured there, in one command of a few minutes.

    python -m experiments.accelerator

checks that products are full float32 and float64 is float64, that gaps and flows are those of
a CPU, and measures how fast descent runs, what share of the device's products that is, and
what more starting points, longer loops and other settings of the compiler change. It prints a
line for every number, then a table, and writes them all into ``summary.json``.

What matters most comes first, as there is a limit of time (``--minutes``): what does not fit
is told as left out. What fails is told as failed, and the rest goes on. On a CPU it runs too.
"""
