"""Episodes as others read them: found wherever they lie, opened under their consent, in physical units."""
