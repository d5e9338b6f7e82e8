"""Clocks, alignment, consent and the episode: what joins the streams of a rig."""
