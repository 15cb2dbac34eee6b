"""Care of what stands. Never imports Dagster."""
