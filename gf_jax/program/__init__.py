"""What is the user's f? Traced once, lifted, split from its data, with its kinks gated."""
