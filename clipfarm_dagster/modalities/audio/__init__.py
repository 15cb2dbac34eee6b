"""Sounds: decoding, and wav2vec2."""
