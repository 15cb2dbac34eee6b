"""Dagster resources: thin, config in and a plain object out. What they give knows nothing of Dagster."""
