"""The store as a Dagster resource."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster_aws.s3 import S3Resource

from clipfarm_dagster.errors import SettingsError, StoreUnavailableError
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.stages import Stage
from workbench.seaweedfs import S3Server

# Dagster itself calls what it deprecates when it initialises a nested resource.
pytestmark = pytest.mark.filterwarnings("ignore:.*dagster_run is deprecated:DeprecationWarning")


@dg.asset
def marker(object_store: ObjectStoreResource) -> None:
    """Writes one object through the resource."""
    object_store.open().put(f"{object_store.store_keys().prefix}/marker", b"made")


def _materialize(resource: ObjectStoreResource, **more: object) -> dg.ExecuteInProcessResult:
    return dg.materialize([marker], resources={"object_store": resource, **more})


def test_settings_are_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = ObjectStoreResource()
    monkeypatch.setenv("CLIPFARM_STORE_URL", str(tmp_path / "by-setting"))
    monkeypatch.setenv("CLIPFARM_PREFIX", "farm")
    assert resource.open().url == str(tmp_path / "by-setting")
    assert resource.store_keys().raw_folder(Stage.TEXT) == "farm/raw/text/"
    assert _materialize(resource).success
    assert (tmp_path / "by-setting" / "farm" / "marker").read_bytes() == b"made"


def test_config_wins_over_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFARM_STORE_URL", str(tmp_path / "by-setting"))
    monkeypatch.setenv("CLIPFARM_PREFIX", "farm")
    resource = ObjectStoreResource(url=str(tmp_path / "by-config"), prefix="other")
    assert _materialize(resource).success
    assert (tmp_path / "by-config" / "other" / "marker").is_file()
    assert not (tmp_path / "by-setting").exists()


def test_environment_variables_are_read_at_run_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = ObjectStoreResource(url=dg.EnvVar("URL_OF_THE_FARM"), prefix=dg.EnvVar("PREFIX_OF_THE_FARM"))
    monkeypatch.setenv("URL_OF_THE_FARM", str(tmp_path / "by-variable"))
    monkeypatch.setenv("PREFIX_OF_THE_FARM", "other")
    assert _materialize(resource).success
    assert (tmp_path / "by-variable" / "other" / "marker").is_file()


@pytest.mark.parametrize("prefix", ["../up", "/abs", "a//b", "a/"])
def test_dangerous_prefix(prefix: str) -> None:
    with pytest.raises(SettingsError, match="PREFIX"):
        ObjectStoreResource(prefix=prefix).store_keys()


def test_s3_by_environment(s3_environment: S3Server) -> None:
    resource = ObjectStoreResource(url=s3_environment.url, prefix="by-environment")
    assert _materialize(resource).success
    store = resource.open()
    assert store.get("by-environment/marker").data == b"made"
    store.delete("by-environment/marker")


def test_s3_by_resource(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in s3_environment.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SECRET_OF_THE_FARM", s3_environment.secret_access_key)
    s3 = S3Resource(
        endpoint_url=s3_environment.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=s3_environment.access_key_id,
        aws_secret_access_key=dg.EnvVar("SECRET_OF_THE_FARM"),
    )
    resource = ObjectStoreResource(url=s3_environment.url, prefix="by-resource", s3=s3)
    assert _materialize(resource).success
    with resource.process_config_and_initialize_cm() as initialised:
        store = initialised.open()
    assert store.get("by-resource/marker").data == b"made"
    store.delete("by-resource/marker")


def test_s3_resource_of_a_profile_that_is_missing(s3_environment: S3Server) -> None:
    resource = ObjectStoreResource(url=s3_environment.url, s3=S3Resource(profile_name="not-there"))
    with pytest.raises(StoreUnavailableError, match="not-there"):
        resource.open().head("x")


def test_s3_configured_at_launch_is_refused_clearly(s3_environment: S3Server) -> None:
    s3 = S3Resource.configure_at_launch()
    resource = ObjectStoreResource(url=s3_environment.url, s3=s3)
    with pytest.raises(SettingsError, match="not at launch"):
        _materialize(resource, s3=s3)


def test_import_brings_no_heavy_library() -> None:
    code = (
        "import sys, clipfarm_dagster.orchestration.resources.object_store as m; m.ObjectStoreResource(url='s3://bucket');"
        "print([n for n in ('boto3', 'botocore', 'dagster_aws', 'pyarrow') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
