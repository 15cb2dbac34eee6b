"""Runs of the embedding jobs: what they have in hand, and which are dead or broken."""
