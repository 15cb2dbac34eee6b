"""What happens to the items of a run, from fetched bytes to recorded outcome. Never imports Dagster."""
