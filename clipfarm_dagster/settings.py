"""Every setting, in one place. Read when work starts, never while definitions are imported.

A setting comes from the environment (`CLIPFARM_STORE_URL`, `CLIPFARM_VIDEO_MODEL`, …), else from the file
`clipfarm.env` in the folder `CLIPFARM_HOME`, else it has the default given here. S3 endpoint, region and
credentials are not here: they come the AWS way.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.home import Home
from clipfarm_dagster.store.keys import Keys

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SETTINGS_FILE = "clipfarm.env"
"""Name of the file in `CLIPFARM_HOME` that holds settings as `NAME=value` lines."""

_PREFIX = "CLIPFARM_"


_RUN_SIZES = {"local": 500, "ray": 10_000}
"""Ids of one run by engine. A cluster waits while a run starts and ends, so its runs are larger."""


class StageSettings(BaseModel, extra="forbid"):
    """What every stage has."""

    model: str
    revision: str
    model_path: str = Field(
        "",
        description="Folder with the files of the hub model that model and revision name; by default the hub"
        " and its cache.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Items per forward pass; by default depends on the device."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the model. Another precision is another contract."
    )
    source_columns: str = Field(
        "", description="Metadata columns that the source hash covers, separated by commas."
    )

    @field_validator("model_path")
    @classmethod
    def _absolute_model_path(cls, path: str) -> str:
        return str(Path(path).expanduser().absolute()) if path else ""

    def columns(self) -> tuple[str, ...]:
        """`source_columns` as a tuple, in the order given."""
        return _by_comma(self.source_columns)


class VideoSettings(StageSettings):
    """Settings of the video stage."""

    model: str = Field("MCG-NJU/videomae-base", description="VideoMAE checkpoint: hub id or folder.")
    revision: str = Field(
        "dc740ceda42fce44faed2ea03c6d447db72f6af9",
        description="Commit SHA on the hub; ignored for folders.",
    )
    pooling: Literal["first_token", "mean"] = Field(
        "first_token", description="`first_token` is `last_hidden_state[:, 0]`; `mean` averages all tokens."
    )
    frames: int = Field(16, ge=1, description="Frames sampled from a clip; should be the model's own number.")
    unknown_count: Literal["first", "count"] = Field(
        "first",
        description="If the container gives no frame count: `first` takes the first frames, `count` counts"
        " by demuxing.",
    )


class AudioSettings(StageSettings):
    """Settings of the audio stage."""

    model: str = Field("facebook/wav2vec2-base-960h", description="wav2vec2 checkpoint: hub id or folder.")
    revision: str = Field(
        "22aad52d435eb6dbaf354bdad9b0da84ce7d6156",
        description="Commit SHA on the hub; ignored for folders.",
    )
    sample_rate: int = Field(16_000, ge=1, description="Samples per second that the model expects.")
    max_seconds: float = Field(90.0, gt=0, description="Only this many seconds from the start are used.")


class TextSettings(StageSettings):
    """Settings of the text stage."""

    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="SentenceTransformer checkpoint: hub id or folder.",
    )
    revision: str = Field(
        "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        description="Commit SHA on the hub; ignored for folders.",
    )
    source_columns: str = Field(
        "title,description,query",
        description="Metadata columns that the source hash covers, separated by commas.",
    )


class Settings(BaseSettings):
    """All settings of one installation. `load_settings` reads them."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="forbid", frozen=True
    )

    home: Path = Field(
        Path(".clipfarm"), description="Folder for local state: ledgers, caches, Dagster's own data."
    )
    store_url: str = Field(
        "", description="`s3://bucket` or a folder; by default `store` in the home folder."
    )
    prefix: str = Field("clipfarm", description="First part of every key in the store.")
    metadata_url: str = Field(
        "", description="The metadata CSV: `s3://bucket/key` or a path; by default its key in the store."
    )
    state_url: str = Field(
        "", description="`postgresql://…` for a shared ledger; by default SQLite files in the home folder."
    )
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`, …; `auto` uses a GPU if there is one.")
    frozen: bool = Field(
        True,
        description="Refuse model revisions that are not a full commit SHA; `false` resolves a branch once.",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="Where vectors are computed: `local` is here, `ray` the cluster at `RAY_ADDRESS`.",
    )
    ray_actors: int = Field(
        0,
        ge=0,
        description="Processes of a run on a cluster; 0 means one for each GPU, and one for a node without.",
    )
    ray_actor_cores: int = Field(
        0, ge=0, description="Processor cores of each of them; 0 means its share of the node's cores."
    )
    ray_lease_size: int = Field(
        32,
        ge=1,
        description="Items that such a process is given at once; a lost node costs at most twice as many.",
    )
    ray_silence_seconds: float = Field(
        600.0, gt=0, description="If such a process gives no result for so long, it is ended and replaced."
    )
    ray_node_home: str = Field(
        "~/.cache/clipfarm", description="Folder on each node for what it has checked; may be lost."
    )
    workers: int = Field(0, ge=0, description="Processes that decode; 0 means one per processor core.")
    run_size: int = Field(
        0,
        ge=0,
        description="Number of ids that the sensor or `sync` puts into one run; 0 means 500, or 10000 with"
        " `CLIPFARM_ENGINE=ray`.",
    )
    max_runs_per_tick: int = Field(
        6, ge=1, description="Runs that the sensor launches per tick, for each stage."
    )
    gather_seconds: float = Field(
        0.0,
        ge=0,
        description="So long the sensor waits for more before it launches a run of fewer ids than"
        " `CLIPFARM_RUN_SIZE`: a run takes seconds to start and loads the model.",
    )
    max_attempts: int = Field(5, ge=1, description="Failed attempts after which an item is quarantined.")
    retry_seconds: float = Field(
        60.0, gt=0, description="Delay after the first failure; doubles with each further one."
    )
    previews: Literal["single", "all"] = Field(
        "single",
        description="Which runs show in Dagster's UI what the model was given: those of a single video, or"
        " all; a preview takes up to 40 KB of the event log.",
    )
    migration_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of Dagster's concurrent runs in which the sensor embeds videos by a changed model"
        " while the former one serves: at least one run, or none if 0.",
    )
    cut_over: Literal["auto", "manual"] = Field(
        "auto",
        description="What happens once another model has embedded all that is served: with `auto` its vectors"
        " serve, with `manual` only `clipfarm migrate cut-over` lets them.",
    )
    item_timeout_seconds: float = Field(
        300.0, gt=0, description="If preparing one item takes longer, it is stopped and fails."
    )
    fetch_timeout_seconds: float = Field(
        120.0,
        gt=0,
        description="If fetching one raw object takes longer than this, plus a second per 256 KiB, it is"
        " stopped and fails.",
    )
    max_object_bytes: int = Field(2**31, ge=1, description="Larger raw objects are refused.")
    max_text_bytes: int = Field(2**26, ge=1, description="Larger transcript files are refused.")
    max_pixels: int = Field(2**26, ge=1, description="Videos whose frames have more pixels are refused.")
    max_frames: int = Field(2**20, ge=1, description="Videos with more frames are refused.")
    max_prepare_bytes: int = Field(
        2**32, ge=2**28, description="If preparing one item takes more memory, it fails."
    )
    allowed_hosts: str = Field(
        "",
        description="Names under which a proxy serves `clipfarm dev` and `clipfarm atlas`, separated by"
        " commas, with the port if the browser shows one.",
    )
    fusion_weights: str = Field(
        "video=1,audio=1,text=1",
        description="Weight of each modality in the fusion strategy `weighted`; 0 leaves one out.",
    )
    video: VideoSettings = Field(default_factory=VideoSettings)
    audio: AudioSettings = Field(default_factory=AudioSettings)
    text: TextSettings = Field(default_factory=TextSettings)

    @field_validator("home")
    @classmethod
    def _check_home(cls, home: Path) -> Path:
        # Dagster gives SQLite the paths of its databases as parts of a URI
        if re.search(r"[?#%]", str(home)):
            raise ValueError(
                f"{str(home)!r} contains ?, # or %, which Dagster's databases cannot have in their path"
            )
        return home

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", prefix):
            raise ValueError("must be one or more names of A-Z a-z 0-9 _ - . separated by slashes")
        return prefix

    @field_validator("allowed_hosts")
    @classmethod
    def _check_allowed_hosts(cls, names: str) -> str:
        for name in _by_comma(names):
            if not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", name):
                raise ValueError(
                    f"{name!r} is not a host name; write it without http:// and path, such as a.example:8443"
                )
        return names

    @property
    def keys(self) -> Keys:
        """The keys of the store under `prefix`."""
        return Keys(self.prefix)

    @property
    def home_files(self) -> Home:
        """Where everything lies in `home`."""
        return Home(self.home)

    @property
    def ids_per_run(self) -> int:
        """Most ids of one run: `run_size`, or what suits the engine."""
        return self.run_size or _RUN_SIZES[self.engine]

    def hosts(self) -> frozenset[str]:
        """`allowed_hosts` as browsers send them."""
        return frozenset(name.lower() for name in _by_comma(self.allowed_hosts))

    def stage(self, stage: Stage) -> StageSettings:
        """The settings of one stage: the field of its name."""
        chosen: StageSettings = getattr(self, stage)
        return chosen

    def source_columns(self) -> dict[Stage, tuple[str, ...]]:
        """Metadata columns that each stage's source hash covers."""
        return {stage: self.stage(stage).columns() for stage in Stage}


def load_settings(**overrides: object) -> Settings:
    """Read the settings; `overrides` take precedence over the environment.

    Paths that are relative are made absolute against the working directory, and `store_url` gets its
    default, so that the answer means the same wherever it is used.

    Raises:
        SettingsError: a value is unusable, or a `CLIPFARM_` variable is not a setting.
    """
    home = Path(str(overrides.get("home") or os.environ.get(f"{_PREFIX}HOME") or ".clipfarm")).expanduser()
    home = home.absolute()
    given = {name: value for name, value in overrides.items() if value is not None}
    _refuse_unknown_variables()
    try:
        settings = Settings(**{**given, "home": home}, _env_file=home / SETTINGS_FILE)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(
            _problem(detail) for detail in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(f"unusable settings: {problems}") from None
    store_url = settings.store_url or str(Home(home).store)
    if "://" not in store_url:
        store_url = str(Path(store_url).expanduser().absolute())
    return settings.model_copy(update={"store_url": store_url})


def given_names(settings: Settings) -> dict[str, str]:
    """Where each setting that is not left at its default was given: `environment` or `file`, by variable."""
    file = settings.home / SETTINGS_FILE
    in_file = dotenv_values(file) if file.is_file() else {}
    return {name.upper(): "file" for name in in_file if name.upper() in variables()} | {
        name.upper(): "environment" for name in os.environ if name.upper() in variables()
    }


def effective_values(settings: Settings) -> dict[str, str]:
    """Every setting's value as text, by variable; of URLs with a password, what is no secret."""
    found = {}
    for name, value in settings.model_dump(mode="json").items():
        parts = value.items() if name in set(Stage) else [("", value)]
        for part, inner in parts:
            variable = "_".join(filter(None, [_PREFIX.rstrip("_"), name.upper(), part.upper()]))
            found[variable] = "" if inner is None else str(inner)
    return found | {"CLIPFARM_STATE_URL": without_password(settings.state_url)}


def without_password(url: str) -> str:
    """A database's URL with stars in place of its password, and nothing of its query."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True) if url else ""
    except (ArgumentError, ValueError):
        return "(not shown: it is not a database URL)"


def check_names(given: Mapping[str, object]) -> None:
    """Refuse overrides for `load_settings` whose names are not those of settings. Reads no setting.

    Raises:
        SettingsError: a name is unknown, or what is given for a stage is not a mapping.
    """
    for name, value in given.items():
        _check_name(name, Settings.model_fields)
        if name in set(Stage):
            if not isinstance(value, Mapping):
                raise SettingsError(f"the setting {name!r} takes a mapping, such as {{'model': …}}")
            part = Settings.model_fields[name].annotation
            assert isinstance(part, type)
            assert issubclass(part, BaseModel)
            for inner in value:
                _check_name(inner, part.model_fields, f"{name}: ")


def _check_name(name: str, known: Iterable[str], where: str = "") -> None:
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise SettingsError(f"{where}{name!r} is not a setting of ClipFarm; {hint}")


def variables() -> dict[str, tuple[str, str]]:
    """Every setting's environment variable, with its default as text and its description."""
    found: dict[str, tuple[str, str]] = {}
    for name, field in Settings.model_fields.items():
        if name not in set(Stage):
            found[f"{_PREFIX}{name.upper()}"] = (_default(field), field.description or "")
            continue
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        for part, inner in field.annotation.model_fields.items():
            found[f"{_PREFIX}{name.upper()}_{part.upper()}"] = (_default(inner), inner.description or "")
    return found


def settings_table() -> str:
    """All settings as a Markdown table, as the README shows it."""
    rows = [f"| `{name}` | {default} | {text} |" for name, (default, text) in variables().items()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _by_comma(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _default(field: FieldInfo) -> str:
    return "" if field.default in (None, "") else f"`{field.default}`"


def _problem(detail: ErrorDetails) -> str:
    name = "_".join(str(part) for part in detail["loc"]).upper()
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        # a line of the file, whose whole name is told; the environment has been checked by then
        return f"{name} in {SETTINGS_FILE} is not a setting of ClipFarm{_hint(name)}"
    return f"{_PREFIX}{name}: {detail['msg']}"


def _refuse_unknown_variables() -> None:
    """A misspelt variable would be ignored without a word, and the work done with the default.

    Variables of a stage are checked by the settings themselves.
    """
    known = variables()
    for name in os.environ:
        if name.startswith(_PREFIX) and name not in known and not name.startswith(_STAGE_PREFIXES):
            raise SettingsError(f"{name} is not a setting of ClipFarm{_hint(name)}")


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, variables(), n=1)
    return f"; did you mean {near[0]}?" if near else ""


_STAGE_PREFIXES = tuple(f"{_PREFIX}{stage.upper()}_" for stage in Stage)
