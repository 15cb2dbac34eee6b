"""The object store: a bucket or a folder, what lies where in it, and copies of it on this machine."""

from clipfarm_dagster.store.object_store import (
    ObjectInfo,
    ObjectStore,
    S3Options,
    StoredObject,
    local_path,
)

__all__ = ["ObjectInfo", "ObjectStore", "S3Options", "StoredObject", "local_path"]
