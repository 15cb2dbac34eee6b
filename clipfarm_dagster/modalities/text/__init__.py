"""Texts: where they are cut, and sentence transformers."""
