"""What tests and benchmarks share: a real S3 server, and clips made to order."""
