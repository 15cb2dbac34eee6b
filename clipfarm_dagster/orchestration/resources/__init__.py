"""Dagster resources: config in, plain object out. What they hand out never imports Dagster."""
