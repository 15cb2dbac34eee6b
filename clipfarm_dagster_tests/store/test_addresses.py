"""What a store's URL and the AWS settings lead to."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from clipfarm_dagster.errors import (
    SettingsError,
    StoreUnavailableError,
)
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.s3 import S3Options
from workbench.seaweedfs import S3Server


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "gs://bucket",
            "s3://",
            "s3://bucket/path",
            "s3://key:secret@bucket",
            "s3://b?secret=x",
            "file://host/x",
        ],
    )
    def test_unusable(self, url: str) -> None:
        with pytest.raises(SettingsError) as caught:
            ObjectStore.open(url)
        assert "secret" not in str(caught.value)

    def test_nothing_is_looked_up_at_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "there-is-none-of-this-name")
        store = ObjectStore.open("s3://bucket/")
        assert store.url == "s3://bucket"
        with pytest.raises(StoreUnavailableError, match="there-is-none-of-this-name"):
            store.head("x")


class TestS3:
    def test_settings_of_a_profile(
        self, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in s3_environment.environment:
            monkeypatch.delenv(name)
        config = tmp_path / "config"
        config.write_text(
            "[profile farm]\nregion = us-east-1\n"
            f"endpoint_url = {s3_environment.endpoint_url}\n"
            f"aws_access_key_id = {s3_environment.access_key_id}\n"
            f"aws_secret_access_key = {s3_environment.secret_access_key}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        by_option = ObjectStore.open(s3_environment.url, s3=S3Options(profile_name="farm"))
        by_option.put("profile", b"1")
        monkeypatch.setenv("AWS_PROFILE", "farm")
        assert ObjectStore.open(s3_environment.url).get("profile").data == b"1"
        by_option.delete("profile")

    def test_service_specific_endpoint_wins(
        self, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_environment.endpoint_url)
        assert ObjectStore.open(s3_environment.url).head("none") is None

    def test_no_credentials(self, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(StoreUnavailableError, match="AWS_ACCESS_KEY_ID"):
            ObjectStore.open(s3_environment.url).head("x")

    def test_wrong_secret(self, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
        store = ObjectStore.open(s3_environment.url)
        for call in (store.head, store.get, store.list):
            with pytest.raises(StoreUnavailableError, match=r"403 Forbidden.*credentials") as caught:
                call("x")
            assert "a-wrong-secret" not in str(caught.value)
            assert "\n" not in str(caught.value)
            assert caught.value.__suppress_context__

    def test_missing_bucket_is_not_a_missing_object(self, s3_environment: S3Server) -> None:
        store = ObjectStore.open("s3://no-such-bucket")
        for call in (store.head, store.get, store.list):
            with pytest.raises(StoreUnavailableError, match="NoSuchBucket"):
                call("x")

    def test_unreachable(self, s3_environment: S3Server) -> None:
        options = s3_environment.options(give_up_seconds=0.5)
        store = ObjectStore.open(
            "s3://bucket", s3=S3Options(**{**vars(options), "endpoint_url": "http://127.0.0.1:1"})
        )
        for call in (store.head, store.get, store.list):
            with pytest.raises(StoreUnavailableError, match="AWS_ENDPOINT_URL"):
                call("x")
        with pytest.raises(StoreUnavailableError):
            list(store.get_many([str(number) for number in range(100)], max_concurrency=4))
        with pytest.raises(StoreUnavailableError):
            store.put_many([(str(number), b"") for number in range(100)])

    def test_a_server_that_never_answers_is_given_up(self, s3_environment: S3Server) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            options = s3_environment.options(give_up_seconds=0.6)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            store = ObjectStore.open("s3://bucket", s3=S3Options(**{**vars(options), "endpoint_url": url}))
            for call in (store.head, store.list):
                with pytest.raises(StoreUnavailableError):
                    call("x")
            with pytest.raises(StoreUnavailableError):
                store.put("x", b"1")

    def test_options_show_no_secret(self, s3_environment: S3Server) -> None:
        store = ObjectStore.open(s3_environment.url, s3=s3_environment.options())
        shown = f"{store!r} {s3_environment.options()!r}"
        assert s3_environment.secret_access_key not in shown
        assert s3_environment.access_key_id not in shown
