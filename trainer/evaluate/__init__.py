"""Score a network on the same pixels for every patch size, and show it."""
