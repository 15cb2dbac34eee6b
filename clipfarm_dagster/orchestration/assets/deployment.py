"""What the code location works with, as an asset: settings, store and contracts, as they are when it is
materialized. No secret is in it."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.maintenance.deployment import effective_settings, environment_that_counts
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage


def deployment_asset(names: CorpusNames) -> dg.AssetsDefinition:
    """The asset whose page tells how a corpus is deployed."""

    @dg.asset(
        key=names.deployment,
        group_name=names.group("deployment"),
        description=(
            "The settings in force and where each comes from, the store, and each stage's contract, as the"
            " code location has them. Materialize it to see them as they are now; passwords are left out."
        ),
        kinds={"python"},
        io_manager_key=names.resource(Resource.VECTORS),
        required_resource_keys=names.resources(*CORPUS),
    )
    def deployment(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        state: StageStateResource = getattr(context.resources, names.resource(Resource.STAGE_STATE))
        return dg.MaterializeResult(
            metadata=_metadata(take_corpus(context.resources, names), state.settings or {})
        )

    return deployment


def _metadata(corpus: Corpus, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows; `given` are the settings of the definitions."""
    settings = [
        dg.TableRecord({"variable": one.variable, "value": one.value, "from": one.source})
        for one in effective_settings(corpus.settings, _variables(given))
    ]
    metadata: dict[str, Any] = {
        "store": f"{corpus.store.url}/{corpus.keys.prefix}",
        "metadata": corpus.metadata.url,
        "home": dg.MetadataValue.path(str(corpus.settings.home)),
        "contracts": dg.MetadataValue.table([_contract(corpus, stage) for stage in Stage]),
        "settings": dg.MetadataValue.table(settings),
    }
    if others := environment_that_counts():
        rows = [dg.TableRecord({"variable": name, "value": value}) for name, value in others.items()]
        metadata["environment"] = dg.MetadataValue.table(rows)
    return metadata


def _contract(corpus: Corpus, stage: Stage) -> dg.TableRecord:
    """What serves in a stage, and what the settings ask for."""
    with corpus.stage(stage) as opened:
        try:
            wanted = opened.wanted.id
        except (ModelUnavailableError, SettingsError) as error:
            wanted = str(error)
        try:
            contract = opened.contract
        except (ModelUnavailableError, SettingsError) as error:
            return dg.TableRecord({"stage": str(stage), "serves": str(error), "wanted": wanted})
    return dg.TableRecord(
        {
            "stage": str(stage),
            "serves": contract.id,
            "wanted": wanted,
            "model": contract.model_name,
            "revision": contract.model_revision,
            "preprocess": f"{contract.preprocess_name}@{contract.preprocess_version}",
            "pooling": contract.pooling,
            "dtype": contract.dtype,
        }
    )


def _variables(given: Mapping[str, Any]) -> list[str]:
    """The variables of settings that definitions were given."""
    found = []
    for name, value in given.items():
        parts = [f"{name}_{part}" for part in value] if isinstance(value, Mapping) else [name]
        found += [f"CLIPFARM_{part.upper()}" for part in parts]
    return found
