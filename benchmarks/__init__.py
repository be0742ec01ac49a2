"""How long training and evaluation take: the plain form of the authors' loop against the fast one, in one process."""
