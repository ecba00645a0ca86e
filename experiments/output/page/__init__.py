"""The page of a run: one HTML file with all that it shows, readable without a network."""
