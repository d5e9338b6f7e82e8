"""Delivery of sealed episodes to a store, with proof before anything may be deleted."""
