"""What a job needs before its ranks start: the node's shape, a place for every rank, and the command lines."""
