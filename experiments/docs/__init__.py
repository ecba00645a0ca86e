"""Pages for readers, and the command that writes the one on flags."""
