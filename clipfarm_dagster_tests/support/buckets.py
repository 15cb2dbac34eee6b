"""Buckets of a test's own, on the S3 server that the environment leads to."""

from __future__ import annotations

import uuid

import boto3


def new_versioned_bucket() -> str:
    """Create a bucket that keeps previous versions, and return its URL."""
    name, client = f"versioned-{uuid.uuid4().hex}", boto3.client("s3")
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return f"s3://{name}"
