"""The process and its surroundings: signals, streams, memory, folders, environment, mistakes."""
