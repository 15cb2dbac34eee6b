"""The object store as a Dagster resource: config in, `clipfarm_dagster.store.ObjectStore` out."""

from collections.abc import Mapping
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


class ObjectStoreResource(dg.ConfigurableResource["ObjectStoreResource"]):
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
    settings: dg.ResourceDependency[Mapping[str, Any] | None] = Field(
        default=None,  # type: ignore[arg-type]
        description="Settings that take precedence over the environment; see `given_settings`.",
    )
    give_up_seconds: float = Field(
        default=60.0, gt=0, description="Give up on a store that stays unavailable for this long."
    )
    # Typed loosely, since importing dagster_aws takes longer than loading all definitions.
    s3: dg.ResourceDependency[Any] = Field(
        default=None,  # type: ignore[arg-type]
        description="A `dagster_aws.s3.S3Resource` whose endpoint, region, profile and keys are used; what "
        "it leaves open, and everything by default, comes from the usual AWS settings. Its "
        "`max_attempts` and `use_ssl` have no effect: `give_up_seconds` bounds retries, and the endpoint's"
        " URL says whether it speaks TLS.",
    )

    def open(self) -> ObjectStore:
        """The store.

        Raises:
            SettingsError: the URL is unusable, or `s3` is no S3Resource.
            StoreError: the folder cannot be created.
        """
        return self.open_url(load_settings(**self.given()).store_url)

    def open_url(self, url: str) -> ObjectStore:
        """The store at a URL, by this resource's credentials and patience.

        Raises:
            SettingsError: the URL is unusable, or `s3` is no S3Resource.
            StoreError: the folder cannot be created.
        """
        return ObjectStore.open(url, s3=_options(self.s3, self.give_up_seconds))

    def store_keys(self) -> Keys:
        """The keys in the store.

        Raises:
            SettingsError: the prefix is unusable.
        """
        return load_settings(**self.given()).keys

    def given(self) -> dict[str, Any]:
        """What this resource says of the settings."""
        return given_settings(self.settings, store_url=self.url, prefix=self.prefix)


def given_settings(settings: Mapping[str, Any] | None, **fields: str | None) -> dict[str, Any]:
    """Overrides for `load_settings`: the settings that a resource was given, and its own fields over them.

    Settings have the names of `clipfarm_dagster.settings.Settings`; those of a stage stand in a mapping under
    its name, as in `{"home": "/data/cooking", "text": {"model": "/models/minilm"}}`. A value given as
    `dagster.EnvVar` is read now.
    """
    return {
        **_told(settings or {}),
        **{name: value for name, value in _told(fields).items() if value is not None},
    }


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    def told(value: Any) -> Any:
        if isinstance(value, dg.EnvVar):
            return value.get_value()
        return _told(value) if isinstance(value, Mapping) else value

    return {name: told(value) for name, value in values.items()}


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
