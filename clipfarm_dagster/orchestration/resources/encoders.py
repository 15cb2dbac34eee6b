"""The models as a Dagster resource: each is loaded once a process."""

import threading
from collections.abc import Callable

import dagster as dg
from pydantic import Field

from clipfarm_dagster.corpus.checked_encoder import node_model
from clipfarm_dagster.engine.distributed.node import NodeModel
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder, stage_contract
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage


class EncodersResource(dg.ConfigurableResource["EncodersResource"]):
    """Loads encoders. Nothing is loaded before `load` is called."""

    device: str | None = Field(
        default=None,
        description="`cpu`, `cuda`, `cuda:1`, …; by default the setting CLIPFARM_DEVICE.",
    )

    def load(self, stage: Stage, settings: Settings) -> Encoder:
        """The encoder of a stage, loaded at the first call in this process.

        Raises:
            ModelUnavailableError: the model is neither cached nor reachable, or its weights do not fit.
        """
        if self.device is not None:
            settings = settings.model_copy(update={"device": self.device})
        contract_id, chosen = stage_contract(stage, settings).id, settings.stage(stage)
        wanted = (contract_id, chosen.model_path, settings.device, chosen.batch_size)
        with _lock:
            if stage not in _loaded or _loaded[stage][0] != wanted:
                _loaded.pop(stage, None)  # the old model's memory is free before the new one needs it
                _loaded[stage] = (wanted, load_encoder(stage, settings))
            return _loaded[stage][1]

    def on_nodes(self, stage: Stage, settings: Settings, store_url: str) -> Callable[[], NodeModel]:
        """What loads a stage's encoder on each node of a cluster; it can be pickled."""
        return node_model(stage, settings, store_url)


_lock = threading.Lock()
_loaded: dict[Stage, tuple[object, Encoder]] = {}
