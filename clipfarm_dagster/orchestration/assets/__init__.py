"""The assets: raw artifacts that are observed, and the embeddings made of them."""
