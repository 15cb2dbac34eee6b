"""Two corpora of ClipFarm beside assets, an executor and an IO manager of the project's own."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from clipfarm_dagster import VectorMatrix
from clipfarm_dagster.definitions import build_definitions


class JsonFiles(dg.ConfigurableIOManager):
    """Keeps what the project's assets return, one file an asset or partition."""

    folder: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        path = Path(self.folder, *context.get_asset_identifier()).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(obj))

    def load_input(self, context: dg.InputContext) -> Any:
        raise NotImplementedError


@dg.asset(
    ins={"vector": dg.AssetIn(["news", "text_embedding"])},
    partitions_def=dg.DynamicPartitionsDefinition(name="news__video_id"),
)
def strongest(vector: np.ndarray) -> dict[str, Any]:
    """The number of a vector that stands out most."""
    return {"shape": vector.shape, "dtype": str(vector.dtype), "number": int(np.abs(vector).argmax())}


@dg.asset(ins={"recipes": dg.AssetIn(["recipes", "text_embedding"])})
def centroid(recipes: VectorMatrix) -> dict[str, Any]:
    """The mean of all recipes."""
    return {"videos": list(recipes.video_ids), "mean": recipes.vectors.mean(axis=0).tolist()}


defs = dg.Definitions.merge(
    build_definitions(key_prefix="news", settings={"home": dg.EnvVar("NEWS_HOME")}),
    build_definitions(
        key_prefix="recipes",
        group_prefix="food",
        partitions_name="recipe",
        settings={"home": dg.EnvVar("RECIPES_HOME"), "text": {"source_columns": "title"}},
    ),
    dg.Definitions(
        assets=[strongest, centroid],
        jobs=[dg.define_asset_job("news_job", dg.AssetSelection.assets(["news", "text_embedding"]))],
        executor=dg.multiprocess_executor.configured({"max_concurrent": 2}, "studio_executor"),
        resources={"io_manager": JsonFiles(folder=dg.EnvVar("STUDIO_FOLDER"))},
    ),
)
