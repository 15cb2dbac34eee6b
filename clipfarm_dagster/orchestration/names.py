"""The names under which Dagster knows things: asset keys, jobs, sensors, partitions, resources and run tags.

All names of one corpus come from one `CorpusNames`, so that several corpora can share a code location.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import dagster as dg

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.stages import Stage

BROKEN_TAG = "clipfarm/broken"
"""Run tag of a run that could not do its work as a whole, whatever its items: the error's name."""

FAILED_ITEMS_KEY = "failed"
"""Metadata key of the failure that ends a run with failed items; their number."""

FAILURES_KEY = "failures"
"""Metadata key of the same failure: a table of the first of these items, with causes."""

CONTRACT_TAG = "clipfarm/contract"

ENVIRONMENT_TAG = "clipfarm/environment"
"""Run tags with the ids of what the run's vectors depend on, and of what they should not depend on."""

STAGE_TAG = "clipfarm/stage"
"""Run tag that names the stage of an id-list run."""

ITEMS_TAG = "clipfarm/items"
"""Run tag with the number of ids of an id-list run."""

GENERATION_TAG = "clipfarm/generation"
"""Run tag with the contract id of the generation that a run fills or that it makes serve."""

CORPUS_TAG = "clipfarm/corpus"
"""Run tag that names the key prefix of a run's corpus; runs of the corpus without a prefix do not have it."""

# names are joined by two underscores, which no part has, so that different prefixes give different names
_KEY_PREFIX_PART = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_GROUP_PREFIX = re.compile(r"[A-Za-z0-9_]*")


class Resource(StrEnum):
    """What the assets, jobs and sensors of a corpus are given by Dagster."""

    OBJECT_STORE = "object_store"
    STAGE_STATE = "stage_state"
    ENCODERS = "encoders"
    PROGRESS = "progress"
    VECTORS = "vectors"
    """The IO manager by which other assets take vectors as inputs."""


@dataclass(frozen=True)
class CorpusNames:
    """All names of one corpus. Those of two corpora with different prefixes never clash."""

    key_prefix: tuple[str, ...]
    """First parts of every asset key; empty for the corpus of `clipfarm_dagster.definitions.defs`."""
    group_prefix: str
    """First part of every asset group's name, followed by `_`; may be empty."""
    partitions_name: str
    """Name of the dynamic partitions, one a `video_id`."""

    @classmethod
    def of(
        cls,
        key_prefix: str | Sequence[str] = (),
        group_prefix: str | None = None,
        partitions_name: str | None = None,
    ) -> CorpusNames:
        """The names of a corpus; `group_prefix` and `partitions_name` follow the key prefix by default.

        Raises:
            SettingsError: a prefix cannot be part of a name.
        """
        parts = (key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix)
        parts = tuple(part for part in parts if part)
        joined = "__".join(parts)
        groups = joined if group_prefix is None else group_prefix
        for part in parts:
            if not _KEY_PREFIX_PART.fullmatch(part):
                raise SettingsError(
                    f"key_prefix {part!r} cannot be part of every name: use letters, digits and single"
                    " underscores between them, beginning with a letter"
                )
        if not _GROUP_PREFIX.fullmatch(groups):
            raise SettingsError(
                f"group_prefix {groups!r} cannot be part of a group's name: use letters, digits and _"
            )
        return cls(parts, groups, partitions_name or "__".join([*parts, "video_id"]))

    @property
    def corpus(self) -> str:
        """The key prefix as one name; empty where there is none."""
        return "__".join(self.key_prefix)

    @property
    def partitions_def(self) -> dg.DynamicPartitionsDefinition:
        """One partition a `video_id`, added by the sensor and by `clipfarm sync`."""
        return dg.DynamicPartitionsDefinition(name=self.partitions_name)

    def embedding(self, stage: Stage) -> dg.AssetKey:
        """Key of a stage's embedding asset."""
        return self._key(f"{stage}_embedding")

    def candidate(self, stage: Stage) -> dg.AssetKey:
        """Key of the asset of a stage's embeddings by the wanted model, while another one serves."""
        return self._key(f"{stage}_candidate")

    def raw(self, stage: Stage) -> dg.AssetKey:
        """Key of the raw asset that a stage reads."""
        return self._key(f"raw_{stage}")

    def manifest(self, stage: Stage) -> dg.AssetKey:
        """Key of a modality's manifest asset."""
        return self._key(f"{stage}_manifest")

    def comparison(self, stage: Stage) -> dg.AssetKey:
        """Key of the asset that compares another generation with the one that serves."""
        return self._key(f"{stage}_comparison")

    @property
    def fused(self) -> dg.AssetKey:
        """Key of the fused manifest's asset."""
        return self._key("fused_manifest")

    @property
    def deployment(self) -> dg.AssetKey:
        """Key of the asset that tells how the corpus is deployed."""
        return self._key("deployment")

    def asset_keys(self) -> Iterator[dg.AssetKey]:
        """The keys of all assets."""
        for stage in Stage:
            yield from (self.raw(stage), self.embedding(stage), self.manifest(stage))
            yield from (self.candidate(stage), self.comparison(stage))
        yield self.fused
        yield self.deployment

    def embedding_job(self, stage: Stage) -> str:
        """Name of the job that embeds the videos in a run's config."""
        return self._name(f"{stage}_embedding_job")

    def embedding_op(self, stage: Stage) -> str:
        """Name of that job's op."""
        return self._name(f"embed_{stage}")

    def candidate_job(self, stage: Stage) -> str:
        """Name of the job that embeds the videos in a run's config by a model that does not serve yet."""
        return self._name(f"{stage}_candidate_job")

    def candidate_op(self, stage: Stage) -> str:
        """Name of that job's op."""
        return self._name(f"embed_{stage}_candidate")

    @property
    def cut_over_job(self) -> str:
        """Name of the job that lets another generation serve."""
        return self._name("cut_over_job")

    @property
    def cut_over_op(self) -> str:
        """Name of that job's op."""
        return self._name("cut_over")

    @property
    def manifests_job(self) -> str:
        """Name of the job that makes manifests and fused vectors."""
        return self._name("manifests_job")

    @property
    def checks_job(self) -> str:
        """Name of the job that runs all asset checks."""
        return self._name("checks_job")

    @property
    def erasure_job(self) -> str:
        """Name of the job that erases the videos in a run's config."""
        return self._name("erase_videos")

    @property
    def erasure_op(self) -> str:
        """Name of that job's op."""
        return self._name("erase")

    def jobs(self) -> Iterator[str]:
        """The names of all jobs."""
        for stage in Stage:
            yield from (self.embedding_job(stage), self.candidate_job(stage))
        yield from (self.cut_over_job, self.manifests_job, self.checks_job, self.erasure_job)

    def ledger_checks(self, stage: Stage) -> str:
        """Name of the op that checks a stage's ledger."""
        return self._name(f"{stage}_ledger_checks")

    @property
    def embedding_sensor(self) -> str:
        """Name of the sensor that keeps embeddings up to date."""
        return self._name("embedding_sensor")

    @property
    def manifest_sensor(self) -> str:
        """Name of the sensor that keeps manifests up to date."""
        return self._name("manifest_sensor")

    @property
    def checks_schedule(self) -> str:
        """Name of the schedule that checks what is stored."""
        return self._name("checks_schedule")

    def group(self, name: str) -> str:
        """Name of a group of assets."""
        return f"{self.group_prefix}_{name}" if self.group_prefix else name

    def resource(self, resource: Resource) -> str:
        """Key of a resource."""
        return self._name(f"clipfarm_{resource}")

    def resources(self, *wanted: Resource) -> set[str]:
        """Keys of some resources."""
        return {self.resource(resource) for resource in wanted}

    def run_tags(self) -> dict[str, str]:
        """Tags of every run of the corpus's own jobs."""
        return {CORPUS_TAG: self.corpus} if self.corpus else {}

    def is_run(self, run: dg.DagsterRun) -> bool:
        """Whether a run is of this corpus: of one of its jobs, or of some of its assets."""
        return run.job_name in set(self.jobs()) or not (run.asset_selection or frozenset()).isdisjoint(
            self.asset_keys()
        )

    def _key(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([*self.key_prefix, name])

    def _name(self, name: str) -> str:
        return "__".join([*self.key_prefix, name])


DEFAULT_NAMES = CorpusNames.of()
"""The names without a prefix: those of `clipfarm_dagster.definitions.defs` and of the command line."""
