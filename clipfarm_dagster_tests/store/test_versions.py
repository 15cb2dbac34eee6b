"""Previous versions of objects: found, read and removed for good, in a bucket that keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.buckets import new_versioned_bucket
from clipfarm_dagster_tests.support.s3_proxy import refuse, s3_proxy
from workbench.seaweedfs import S3Server


@pytest.fixture
def versioned(s3_environment: S3Server) -> ObjectStore:
    """A bucket in which two objects were written over, and a third was removed."""
    store = ObjectStore.open(new_versioned_bucket())
    for key in ("a/x/1", "a/x/10", "a/y/1"):
        store.put(key, b"before")
        store.put(key, b"after")
    store.delete("a/y/1")
    return store


def test_previous_versions_are_those_written_over_and_marks_of_removal(
    versioned: ObjectStore, tmp_path: Path
):
    assert versioned.keeps_versions()
    found = list(versioned.previous_versions("a/"))

    assert sorted((one.key, one.size) for one in found if one.size is not None) == [
        ("a/x/1", 6),
        ("a/x/10", 6),
        ("a/y/1", 5),
        ("a/y/1", 6),
    ]
    assert [one.key for one in found if one.size is None] == ["a/y/1"]
    assert {one.key for one in versioned.previous_versions("a/x/1")} == {"a/x/1", "a/x/10"}
    [old] = versioned.previous_versions("a/x/10")
    versioned.download_version(old, tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"before"


def test_removed_versions_are_gone_and_present_objects_stay(versioned: ObjectStore):
    old = list(versioned.previous_versions("a/"))

    assert versioned.delete_versions(old) == {}
    assert versioned.delete_versions(old) == {}

    assert list(versioned.previous_versions("a/")) == []
    assert sorted(versioned.list("a")["key"].to_pylist()) == ["a/x/1", "a/x/10"]
    assert versioned.get("a/x/1").data == b"after"


def test_folders_of_removed_objects_are_found_by_their_versions(versioned: ObjectStore):
    assert versioned.folders("a/") == ["a/x/"]
    assert versioned.folders("a/", previous=True) == ["a/x/", "a/y/"]
    assert versioned.folders("none/", previous=True) == []


def test_a_store_that_keeps_no_versions_has_none(store: ObjectStore):
    for data in (b"1", b"2"):
        store.put("a/x/1", data)
    store.put("a/y", b"no folder")

    assert not store.keeps_versions()
    assert list(store.previous_versions("a/")) == []
    assert store.folders("a/") == store.folders("a/", previous=True) == ["a/x/"]
    assert store.folders("none/") == []
    assert store.delete_versions([]) == {}


def test_what_may_not_be_listed_or_removed_is_told(versioned: ObjectStore, s3_environment: S3Server):
    old = list(versioned.previous_versions("a/"))
    kept = old[0]
    lock = (
        f"<Error><Key>{kept.key}</Key><VersionId>{kept.version_id}</VersionId>"
        "<Code>AccessDenied</Code><Message>locked</Message></Error>"
    )
    answer = f'<?xml version="1.0"?><DeleteResult>{lock}</DeleteResult>'.encode()
    with s3_proxy(s3_environment) as proxy:
        store = ObjectStore.open(versioned.url, s3=proxy.server.options(give_up_seconds=3))
        proxy.break_("POST", "", lambda said: type(said)(200, {"Content-Type": "application/xml"}, answer))
        [(refused, error)] = store.delete_versions(old).items()
        assert (refused, error.code) == (kept, "AccessDenied")
        assert "locked" in str(error)
        proxy.break_("VERSIONS", "", refuse("AccessDenied"))
        for ask in (lambda: list(store.previous_versions("a/")), lambda: store.folders("a/", previous=True)):
            with pytest.raises(StoreError, match="AccessDenied") as caught:
                ask()
            assert caught.value.code == "AccessDenied"
        proxy.break_("GET", "^$", refuse("AccessDenied"))
        assert store.keeps_versions()
        proxy.break_("GET", "^$", refuse("NotImplemented", 501))
        assert not store.keeps_versions()
        proxy.break_("VERSIONS", "", refuse("NotImplemented", 501))
        assert list(store.previous_versions("a/")) == []
        assert "a/x/" in store.folders("a/", previous=True)
