"""How an input becomes a vector, and the engine that does it for many. Never imports Dagster."""
