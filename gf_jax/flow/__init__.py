"""The continuous limit of descent, its deviation from it, and the distances that they predict."""
