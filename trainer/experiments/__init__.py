"""Several runs that answer one question: a sweep over settings, or the folds of a cross-validation."""
