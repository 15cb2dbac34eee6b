"""What an installation works with: settings, where each comes from, and what else of the environment counts.

No secret is in any of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from clipfarm_dagster.settings import Settings, effective_values, given_names
from clipfarm_dagster.store import local_path

_SHOWN = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    "DAGSTER_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
)
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT", "RAY_ADDRESS")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")


@dataclass(frozen=True)
class EffectiveSetting:
    """A setting as it is in force."""

    variable: str
    value: str
    source: str
    """`environment`, `file`, `default`, or `definitions`: the `settings` of `build_definitions`."""


def effective_settings(settings: Settings, overridden: Collection[str] = ()) -> list[EffectiveSetting]:
    """Every setting of `load_settings`, in the order of the README.

    Args:
        overridden: the variables of settings that were given to `load_settings` itself.
    """
    sources = given_names(settings) | dict.fromkeys(overridden, "definitions")
    return [
        EffectiveSetting(name, _shown_url(name, value), sources.get(name, "default"))
        for name, value in effective_values(settings).items()
    ]


def environment_that_counts() -> dict[str, str]:
    """The other variables that are set and that ClipFarm or a library under it reads; of secrets, only that
    they are set."""
    found = {name: os.environ[name] for name in _SHOWN if name in os.environ}
    found |= {name: _without_credentials(os.environ[name]) for name in _ENDPOINTS if name in os.environ}
    return found | {name: "(set, not shown)" for name in _SECRETS if name in os.environ}


def _shown_url(name: str, value: str) -> str:
    """The value of a setting; of a URL of a kind that ClipFarm refuses, which may hold a password, the
    scheme."""
    if name not in ("CLIPFARM_STORE_URL", "CLIPFARM_METADATA_URL") or "://" not in value:
        return value
    if local_path(value) is not None or (value.startswith("s3://") and not set("@?#") & set(value)):
        return value
    return f"{value.partition('://')[0]}://… (not shown: it cannot be used)"


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(not shown: it is not a URL)"
    if not parts.hostname:
        return url if "@" not in url and "?" not in url else "(not shown: it is not a URL)"
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
