"""Who signs, and whose signatures count: the keys of this machine, and the trust that it has in others."""
