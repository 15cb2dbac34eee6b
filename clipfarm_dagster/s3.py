"""How S3 is reached: endpoint, region and credentials the AWS way, time limits and retries."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clipfarm_dagster.errors import SettingsError, StoreUnavailableError

if TYPE_CHECKING:
    from obstore.store import S3Store

_SLOWEST_BYTES_PER_SECOND = 256 * 1024
"""Below this an upload counts as stalled."""


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


def s3_connector(bucket: str, options: S3Options) -> Callable[..., S3Store]:
    """Look up endpoint, region and credentials as boto3 does; the answer opens a connection with them.

    `upload_bytes` is what a single request may have to send.
    """
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    try:
        session = boto3.session.Session(
            aws_access_key_id=options.aws_access_key_id,
            aws_secret_access_key=options.aws_secret_access_key,
            aws_session_token=options.aws_session_token,
            region_name=options.region_name or os.environ.get("AWS_REGION"),
            profile_name=options.profile_name,
        )
        client = session.client("s3", endpoint_url=options.endpoint_url).meta
        signed = not options.use_unsigned_session
        if signed and session.get_credentials() is None:
            raise StoreUnavailableError(
                f"s3://{bucket}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE, or run where a role gives them"
            )
        # boto3 renews credentials that expire at least 10 minutes before they do.
        provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=10)) if signed else None
    except (BotoCoreError, ValueError) as error:
        raise StoreUnavailableError(f"s3://{bucket}: the AWS settings are unusable: {error}") from None

    endpoint = urlsplit(client.endpoint_url)
    if endpoint.username is not None:
        raise SettingsError("the S3 endpoint's URL holds credentials; set AWS_ACCESS_KEY_ID instead")
    of_aws = (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    ca_bundle = os.environ.get("AWS_CA_BUNDLE") if endpoint.scheme == "https" else None
    seconds = options.give_up_seconds

    def connect(upload_bytes: int = 0) -> S3Store:
        # A stalled request is cut after a third of the time, and none is begun after two thirds.
        stalled = timedelta(seconds=seconds / 3 + upload_bytes / _SLOWEST_BYTES_PER_SECOND)
        return S3Store(
            bucket,
            endpoint=None if of_aws else client.endpoint_url,
            region=client.region_name,
            virtual_hosted_style_request=of_aws,
            skip_signature=not signed,
            credential_provider=provider,
            client_options={
                "allow_http": endpoint.scheme == "http",
                "allow_invalid_certificates": options.verify is False,
                "connect_timeout": timedelta(seconds=min(5.0, seconds / 3)),
                "read_timeout": stalled,
                "timeout": timedelta(hours=1),
                **({"root_certificate": Path(ca_bundle).read_bytes()} if ca_bundle else {}),
            },
            retry_config={
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=seconds * 2 / 3),
                "backoff": {"max_backoff": timedelta(seconds=min(5.0, seconds / 6))},
            },
        )

    return connect
