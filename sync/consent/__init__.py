"""Grants, pauses, and the decisions that follow from them."""
