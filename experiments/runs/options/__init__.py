"""Options of runs: where they lie, their steps, how the steps are made."""
