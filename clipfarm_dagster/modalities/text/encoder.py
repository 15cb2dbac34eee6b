"""The text stage: metadata and transcript through a SentenceTransformer."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.weights import check_weights
from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.encoder import Prepared, Trace, inference
from clipfarm_dagster.modalities.text.cut import LONGEST_TEXT, cut_to_tokens, plain_copy
from clipfarm_dagster.settings import TextSettings
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import l2_normalise

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from tokenizers import Tokenizer

PREPROCESS_VERSION = "1"
"""Raised by hand whenever the code below would give another text for the same bytes and settings."""

TRANSCRIPT_FIELD = "transcript"
"""Field of the raw `.json` that holds what is said."""

METADATA_TEXT_COLUMNS = ("title", "description", "query")
"""Columns of the metadata text, in order, with ` [SEP] ` between."""

_FIRST_CHARACTERS_PER_TOKEN = 8
"""Of the beginning that is tokenized first; English has four to five."""

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")

# A buffer that older checkpoints carry; the model counts positions itself.
_UNUSED_WEIGHTS = ("embeddings.position_ids",)


@dataclass(frozen=True)
class TextPreparer:
    """Composes the two texts that are embedded, of each its first `LONGEST_TEXT` characters at most."""

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        """Prepare one item: the metadata text and the transcript."""
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InvalidRawObjectError(f"the transcript is not JSON: {error}") from None
        transcript = document.get(TRANSCRIPT_FIELD) if isinstance(document, dict) else None
        if not isinstance(transcript, str):
            raise InvalidRawObjectError(f"the JSON has no text in a field {TRANSCRIPT_FIELD!r}")
        if half := _HALF_OF_A_PAIR.search(transcript):  # JSON can escape it; no tokenizer takes it
            raise InvalidRawObjectError(
                f"the transcript is not valid Unicode: half of a surrogate pair at position {half.start()}"
            )
        described = " [SEP] ".join(metadata.get(name) or "" for name in METADATA_TEXT_COLUMNS)
        shown = None
        if preview:
            from clipfarm_dagster.modalities.previews import quoted_markdown

            metadata_shown, transcript_shown = quoted_markdown(described), quoted_markdown(transcript)
            shown = f"**Metadata**\n\n{metadata_shown}\n\n**Transcript**\n\n{transcript_shown}"
        return Prepared((described[:LONGEST_TEXT], transcript[:LONGEST_TEXT]), None, None, shown)


class TextEncoder:
    """A SentenceTransformer over metadata and transcript: two unit vectors, concatenated, L2-normalised."""

    def __init__(
        self, contract: Contract, settings: TextSettings, checkpoint: Checkpoint, folder: Path, device: str
    ) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.contract, self.device = contract, device
        self._model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, settings.dtype)},
        )
        self._model.eval()
        transformer: Any = self._model[0].auto_model
        stored, loaded = _weight_names(folder), set(transformer.state_dict())
        check_weights(checkpoint, sorted(loaded - stored), sorted(stored - loaded), allowed=_UNUSED_WEIGHTS)
        if device == "cpu" and settings.dtype == "float32":
            from clipfarm_dagster.modalities.onednn import use_onednn

            use_onednn(transformer)
        self.dimension = 2 * int(self._model.get_embedding_dimension() or 0)
        self.batch_size = settings.batch_size or 128
        self.finds_batch_size = settings.batch_size is None and device != "cpu"
        self.preparer = TextPreparer()
        self._tokenizing = threading.Lock()

    @cached_property
    def _cutting_tokenizer(self) -> Tokenizer | None:
        """For finding out how much of a text is read; `None` where the tokenizer is in Python alone."""
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        return None if backend is None else plain_copy(backend)

    def _cut(self, text: str) -> str:
        """What is read of a text: a beginning with the same first tokens."""
        wanted = self._model.max_seq_length
        start = _FIRST_CHARACTERS_PER_TOKEN * (wanted or 0)
        if wanted is None or len(text) <= start or self._cutting_tokenizer is None:
            return text
        return cut_to_tokens(text, self._cutting_tokenizer, wanted, start=start)

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        """Vectors of items: float32 (items, 2 * the model's dimension), of unit L2 norm.

        Raises:
            InvalidRawObjectError: the tokens that the model reads of a text are not settled by its first
                `LONGEST_TEXT` characters.
        """
        import numpy as np

        texts = [self._cut(text) for item in batch for text in item.inputs]
        halves = l2_normalise(self._encode_texts(texts))
        return l2_normalise(np.concatenate([halves[0::2], halves[1::2]], axis=1))

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Vectors of texts, float32 (texts, dimension); only texts of equal token count share a pass."""
        import numpy as np
        import torch

        with self._tokenizing:  # a tokenizer's padding and truncation are state that threads would share
            features = self._model.preprocess(list(texts))
        tokens = {
            name: value for name, value in features.items() if torch.is_tensor(value) and value.ndim == 2
        }
        lengths = tokens["attention_mask"].sum(dim=1).numpy()
        vectors = np.empty((len(texts), self.dimension // 2), dtype=np.float32)
        for length in np.unique(lengths):
            chosen = np.flatnonzero(lengths == length)
            real = tokens["attention_mask"][chosen].bool()
            unpadded = {
                name: value[chosen][real].view(len(chosen), int(length)).to(self._model.device)
                for name, value in tokens.items()
            }
            with inference(self.device):
                embedded = self._model(unpadded)["sentence_embedding"]
            vectors[chosen] = embedded.float().cpu().numpy()
        return vectors

    def trace(self, raw: bytes, metadata: Mapping[str, str]) -> Trace:
        """One item after each step: the two texts as UTF-8, their token ids, the vector."""
        import numpy as np

        item = self.preparer(raw, metadata)
        characters = np.frombuffer("\0".join(item.inputs).encode(), dtype=np.uint8)
        # each text alone, so that no padding follows the shorter one
        tokens = [self._model.preprocess([self._cut(text)])["input_ids"][0] for text in item.inputs]
        return Trace(
            characters, np.concatenate([ids.cpu().numpy() for ids in tokens]), self.encode([item])[0]
        )

    def parameters(self) -> Iterator[torch.Tensor]:
        """The model's weights as loaded, in the order of its layers."""
        yield from self._model.parameters()


def _weight_names(folder: Any) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            names.update(file.keys())
    return names
