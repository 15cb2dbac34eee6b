"""The object store as a Dagster resource: config in, `clipfarm_dagster.store.ObjectStore` out."""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.store.s3 import S3Options

if TYPE_CHECKING:
    from dagster_aws.s3 import S3Resource


class ObjectStoreResource(dg.ConfigurableResource[ObjectStore]):
    """Where clips and embeddings lie. Nothing is read or connected to before a method is called."""

    # Dependencies, not config: config could be overridden by whoever launches a run.
    url: dg.ResourceDependency[str | None] = Field(
        default=None,  # type: ignore[arg-type]
        description="`s3://bucket` or a folder; by default the setting CLIPFARM_STORE_URL.",
    )
    prefix: dg.ResourceDependency[str | None] = Field(
        default=None,  # type: ignore[arg-type]
        description="First part of every key; by default the setting CLIPFARM_PREFIX.",
    )
    give_up_seconds: float = Field(
        default=60.0, gt=0, description="A store that stays away this long is given up."
    )
    # Typed loosely, since importing dagster_aws takes longer than loading all definitions.
    s3: dg.ResourceDependency[Any] = Field(
        default=None,  # type: ignore[arg-type]
        description="A `dagster_aws.s3.S3Resource` whose endpoint, region, profile and keys are used; what "
        "it leaves open, and everything by default, comes the AWS way. Its `max_attempts` and `use_ssl` have "
        "no effect: `give_up_seconds` bounds retries, and the endpoint's URL says whether it speaks TLS.",
    )

    def open(self) -> ObjectStore:
        """The store.

        Raises:
            SettingsError: the URL is unusable, or `s3` is no S3Resource.
            StoreError: the folder cannot be created.
        """
        url = load_settings(store_url=told(self.url)).store_url
        return ObjectStore.open(url, s3=_options(self.s3, self.give_up_seconds))

    def store_keys(self) -> Keys:
        """The keys in the store.

        Raises:
            SettingsError: the prefix is unusable.
        """
        return load_settings(prefix=told(self.prefix)).keys


def told(value: str | None) -> str | None:
    """The text itself; that of an environment variable where it was given as `dagster.EnvVar`."""
    return value.get_value() if isinstance(value, dg.EnvVar) else value


def _options(s3: "S3Resource | None", give_up_seconds: float) -> S3Options:
    if s3 is None:
        return S3Options(give_up_seconds=give_up_seconds)
    from dagster_aws.s3 import S3Resource

    if not isinstance(s3, S3Resource):
        # Dagster hands over the boto3 client of a resource that is configured at launch.
        raise SettingsError(
            "the store's `s3` must be a dagster_aws.s3.S3Resource that is configured where it is made, "
            "with dagster.EnvVar for secrets, and not at launch"
        )
    return S3Options(
        endpoint_url=s3.endpoint_url,
        region_name=s3.region_name,
        profile_name=s3.profile_name,
        aws_access_key_id=s3.aws_access_key_id,
        aws_secret_access_key=s3.aws_secret_access_key,
        aws_session_token=s3.aws_session_token,
        use_unsigned_session=s3.use_unsigned_session,
        verify=s3.verify,
        give_up_seconds=give_up_seconds,
    )
