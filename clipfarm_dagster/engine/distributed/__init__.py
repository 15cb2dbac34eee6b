"""Computes items on the nodes of a Ray cluster."""
