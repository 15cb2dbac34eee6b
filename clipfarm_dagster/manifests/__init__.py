"""What is made of finished embeddings: manifests, fused vectors, searches, pictures. Without Dagster."""
