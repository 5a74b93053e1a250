"""Arithmetic before anything is loaded: what a model takes, and what fits where."""
