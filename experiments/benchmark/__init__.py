"""What a base iteration costs: this engine beside the forms that others would write.

    python -m experiments.benchmark

takes about eight minutes on two CPU cores (``--rounds=2``: two thirds of that) and prints
one table, one table of ratios and the growth of cost. Results are saved as
``summary.json`` in a run directory, with a figure. PyTorch takes part where it is
installed, ``pip install -e ".[benchmark]"``.

A base iteration is one step of the base run and r steps of every run with ratio r: 38
steps for ratios 1, 2, 5, 10, 20. Every implementation takes the same steps from the same
start on the same data, with matrix products in full float32 on every device, and must end
with the same losses:

    eager JAX       textbook network, one step after the other, not compiled
    jitted step     the same step compiled, called in a Python loop, one run per call
    scan per run    one compiled scan per run
    padded vmap     all runs under one vmap, each for max(ratios) steps, masked
    gf_jax          this engine, compensated arithmetic
    PyTorch eager   its usual layout and style, data held in memory
    torch.compile   the same with its loss compiled

Implementations are measured in turn, in rounds, so that whatever else the machine does
meets all of them. A measurement takes about ``measuring.TARGET_SECONDS``: where a base
iteration is shorter, it takes several; where it is longer, as many steps as fit (at least
one; of the padded vmap, masked steps of all runs), and their time is scaled to a base
iteration. Scan per run and engine always take whole base iterations. Where a whole base
iteration takes longer than ``measuring.CHECK_SECONDS``, losses are compared for those runs
only that arrive within that time, those with the largest steps.
"""
