"""Cases of every operation, a file of the same name each: `VALUES` and `COMPILED`."""
