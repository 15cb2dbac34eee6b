"""Vectors in and out, as files. Never imports Dagster."""
