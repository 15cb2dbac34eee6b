"""Looking at finished vectors: search, projection, pictures and the atlas. Never imports Dagster."""
