"""What is published of finished vectors: manifests, and fused vectors. Never imports Dagster."""
