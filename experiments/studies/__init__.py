"""The experiments: what each of them computes, and what it makes of it."""
