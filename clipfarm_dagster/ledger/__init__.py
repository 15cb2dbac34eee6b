"""The stage state DB: one row a `video_id` and stage, the truth about what is done. Never imports Dagster."""
