"""The central flow: the averaged path of descent, past the edge of stability too."""
