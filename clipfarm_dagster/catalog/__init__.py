"""The metadata: its CSV, read by columns, and the latest row of each video. Never imports Dagster."""
