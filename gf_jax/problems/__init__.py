"""The networks, losses and starting points of the paper."""
