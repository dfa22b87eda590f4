"""What one rank reads, in what order, as arrays."""
