"""The engine: descent at several step sizes, all of them in one compiled call."""
