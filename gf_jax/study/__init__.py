"""The whole question in one call, and its result."""
