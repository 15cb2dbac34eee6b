"""ClipFarm: keeps the video, audio and text embeddings of short videos up to date, as Dagster assets."""
