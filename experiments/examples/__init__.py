"""Studies of models of one's own, to be read and changed: from flax, equinox, or plain JAX."""
