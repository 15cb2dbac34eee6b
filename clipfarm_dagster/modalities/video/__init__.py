"""Clips: which frames, how they are decoded, and VideoMAE."""
