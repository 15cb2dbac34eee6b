"""What there is and what needs work: keys, metadata rows and the delta. Never imports Dagster."""
