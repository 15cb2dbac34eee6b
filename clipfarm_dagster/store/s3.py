"""How S3 is reached: endpoint, region and credentials the AWS way, time limits and retries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clipfarm_dagster.errors import SettingsError, StoreUnavailableError
from clipfarm_dagster.store.listing import KEYS_AN_ANSWER, Page

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

SLOWEST_BYTES_PER_SECOND = 256 * 1024
"""Below this a transfer counts as stalled."""

_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_LARGEST_PART = 16 * 2**20
"""More than one request of a multi-part upload, or one answer of a listing, has to carry."""


@dataclass(frozen=True)
class S3Options:
    """How to reach S3. What is None comes the AWS way: `AWS_*` variables, profiles, roles."""

    endpoint_url: str | None = None
    region_name: str | None = None
    profile_name: str | None = None
    aws_access_key_id: str | None = field(default=None, repr=False)
    aws_secret_access_key: str | None = field(default=None, repr=False)
    aws_session_token: str | None = field(default=None, repr=False)
    use_unsigned_session: bool = False
    verify: bool | None = None
    """False accepts any TLS certificate."""
    give_up_seconds: float = 60.0
    """Requests are retried with growing, jittered waits; a store that stays away is given up after this."""


class S3Connection:
    """Endpoint, region and credentials of a bucket, looked up as boto3 does; nothing is asked for yet.

    Raises:
        StoreUnavailableError: there are no credentials, or the AWS settings are unusable.
        SettingsError: the endpoint's URL holds credentials.
    """

    def __init__(self, bucket: str, options: S3Options) -> None:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._bucket, self._options = bucket, options
        self._signed = not options.use_unsigned_session
        seconds = options.give_up_seconds
        config = Config(
            connect_timeout=min(5.0, seconds / 3),
            read_timeout=seconds / 3,
            retries={"total_max_attempts": 2, "mode": "standard"},
            s3={"addressing_style": "auto"},
            **({} if self._signed else {"signature_version": UNSIGNED}),
        )
        try:
            session = boto3.session.Session(
                aws_access_key_id=options.aws_access_key_id,
                aws_secret_access_key=options.aws_secret_access_key,
                aws_session_token=options.aws_session_token,
                region_name=options.region_name or os.environ.get("AWS_REGION"),
                profile_name=options.profile_name,
            )
            make = partial(session.client, "s3", endpoint_url=options.endpoint_url, verify=options.verify)
            client = make(config=config)
            self._of_aws = (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AWS_DOMAINS)
            if not self._of_aws:
                client = make(config=config.merge(Config(s3={"addressing_style": "path"})))
            if self._signed and session.get_credentials() is None:
                raise StoreUnavailableError(
                    f"s3://{bucket}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                    "or AWS_PROFILE, or use a role"
                )
        except (BotoCoreError, ValueError) as error:
            raise StoreUnavailableError(f"s3://{bucket}: the AWS settings are unusable: {error}") from None
        self._session, self._client = session, client
        if urlsplit(client.meta.endpoint_url).username is not None:
            raise SettingsError("the S3 endpoint's URL holds credentials; set AWS_ACCESS_KEY_ID instead")

    @property
    def endpoint(self) -> str:
        """The URL that requests go to; never holds credentials."""
        return str(self._client.meta.endpoint_url)

    def connect(self, upload_bytes: int = 0, *, reads: bool = False, seconds: float | None = None) -> S3Store:
        """Open a connection of obstore's.

        Args:
            upload_bytes: what a single request may have to send.
            reads: answers may be of any size, and whoever asks ends those that take too long.
            seconds: instead of `S3Options.give_up_seconds`.
        """
        from obstore.store import S3Store

        seconds = self._options.give_up_seconds if seconds is None else seconds
        endpoint = urlsplit(self._client.meta.endpoint_url)
        ca_bundle = os.environ.get("AWS_CA_BUNDLE") if endpoint.scheme == "https" else None
        # A stalled request is cut after a third of the time, and none is begun after two thirds.
        stalled = timedelta(seconds=seconds / 3 + upload_bytes / SLOWEST_BYTES_PER_SECOND)
        # One that comes byte by byte never stalls.
        whole = timedelta(seconds=seconds + max(upload_bytes, _LARGEST_PART) / SLOWEST_BYTES_PER_SECOND)
        return S3Store(
            self._bucket,
            endpoint=None if self._of_aws else self._client.meta.endpoint_url,
            region=self._client.meta.region_name,
            virtual_hosted_style_request=self._of_aws,
            skip_signature=not self._signed,
            credential_provider=self._credentials,
            client_options={
                "allow_http": endpoint.scheme == "http",
                "allow_invalid_certificates": self._options.verify is False,
                "connect_timeout": timedelta(seconds=min(5.0, seconds / 3)),
                "read_timeout": stalled,
                "timeout": timedelta(days=1) if reads else whole,
                **({"root_certificate": Path(ca_bundle).read_bytes()} if ca_bundle else {}),
            },
            retry_config={
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=seconds * 2 / 3),
                "backoff": {"max_backoff": timedelta(seconds=min(5.0, seconds / 6))},
            },
        )

    @cached_property
    def _credentials(self) -> Boto3CredentialProvider | None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        # boto3 renews credentials that expire at least 10 minutes before they do.
        return Boto3CredentialProvider(self._session, ttl=timedelta(minutes=10)) if self._signed else None

    def list_page(self, prefix: str, after: str | None, *, keys: int = KEYS_AN_ANSWER) -> Page:
        """Objects whose keys begin with `prefix` and are greater than `after`, odd keys too.

        Raises what botocore raises.
        """
        start = {} if after is None else {"StartAfter": after}
        answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=keys, **start)
        found = answer.get("Contents", [])
        return Page(
            [entry["Key"] for entry in found],
            [entry["ETag"] for entry in found],
            [entry["Size"] for entry in found],
            is_last=not answer["IsTruncated"],
        )

    def folders(self, prefix: str) -> Iterator[str]:
        """Keys of the folders right in a folder, with a slash at the end. Raises what botocore raises."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, Delimiter="/"
        )
        return (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", []))

    def folders_of_versions(self, prefix: str) -> Iterator[str]:
        """As `folders`, those of all versions and marks of removal."""
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=prefix, Delimiter="/"
        )
        return (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", []))

    def keeps_versions(self) -> bool:
        """Whether the bucket keeps versions, or once did. Raises what botocore raises."""
        return "Status" in self._client.get_bucket_versioning(Bucket=self._bucket)

    def version_pages(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """All versions, and marks of removal, of keys that begin with `prefix`, as boto3 gives them. Raises
        what botocore raises."""
        paginator = self._client.get_paginator("list_object_versions")
        return iter(paginator.paginate(Bucket=self._bucket, Prefix=prefix))

    def download_version(self, key: str, version_id: str, path: Path) -> None:
        """Write a version into a file. Raises what botocore raises."""
        self._client.download_file(self._bucket, key, str(path), ExtraArgs={"VersionId": version_id})

    def delete_versions(self, versions: Sequence[tuple[str, str]]) -> list[Mapping[str, str]]:
        """Remove versions for good, each given by key and id; returns what S3 says of those that it keeps.
        Raises what botocore raises."""
        asked = [{"Key": key, "VersionId": version_id} for key, version_id in versions]
        answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": asked, "Quiet": True})
        errors: list[Mapping[str, str]] = answer.get("Errors", [])
        return errors

    def tells_md5(self, key: str) -> bool:
        """Whether nothing about an object says that its ETag is no MD5, as that of one encrypted by KMS or by
        a customer's key; False where it cannot be asked."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            head = self._client.head_object(Bucket=self._bucket, Key=key)
        except (BotoCoreError, ClientError):
            return False
        return "SSECustomerAlgorithm" not in head and "kms" not in head.get("ServerSideEncryption", "")
