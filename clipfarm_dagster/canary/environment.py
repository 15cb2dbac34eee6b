"""The environment: what a vector should not depend on, and might: library versions, device, threads.

It stands beside the contract, not in it. It is recorded with each run and with the canary's baseline, so that
a vector that moved can be traced to what changed.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "av",
    "clipfarm-dagster",
    "librosa",
    "numpy",
    "pillow",
    "scipy",
    "sentence-transformers",
    "soundfile",
    "soxr",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where vectors are made. Equal environments have equal ids, and only they."""

    platform: str
    """Operating system and machine type, such as `Linux-x86_64`."""
    processor: str
    """The processor, and the instruction set that torch takes its kernels for."""
    device: str
    """`cpu`, or the GPU with its CUDA and cuDNN versions."""
    threads: int
    """What torch would cut one operator into; on the CPU `inference` allows it one, whatever this says."""
    numerics: Mapping[str, str]
    """torch's process-wide settings that choose kernels."""
    libraries: Mapping[str, str]
    """Versions of Python, of the packages, and of the native libraries that they carry."""

    def to_json(self) -> str:
        """Canonical serialisation: sorted keys, no spaces, ASCII."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical serialisation."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_fields(cls, stored: Mapping[str, Any]) -> Environment:
        """The environment that `to_json` wrote, parsed; fields of earlier versions are left out."""
        return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def differences(self, later: Environment) -> list[str]:
        """What differs in `later`, such as `torch 2.13.0 → 2.14.0`."""
        before, after = _flat(asdict(self)), _flat(asdict(later))
        return [
            f"{name} {before.get(name, 'absent')} → {after.get(name, 'absent')}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]


def _flat(nested: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in nested.items():
        flat.update(value if isinstance(value, Mapping) else {name: str(value)})
    return flat


def current_environment(device: str) -> Environment:
    """The environment of this process, for models on `device` (as torch names it)."""
    import torch

    return Environment(
        platform=f"{platform.system()}-{platform.machine()}",
        processor=f"{_processor_name()}, {torch.backends.cpu.get_cpu_capability()}",
        device=_device_name(device),
        threads=torch.get_num_threads(),
        numerics={
            "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_tf32": str(torch.backends.cudnn.allow_tf32),
            "mkldnn": str(torch.backends.mkldnn.enabled),
        },
        libraries=_library_versions(),
    )


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    import torch

    kind = torch.device(device).type
    if kind != "cuda":
        return kind
    return (
        f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda},"
        f" cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    )


def _library_versions() -> dict[str, str]:
    import av
    import soundfile

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        **{name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()},
        "libsndfile": soundfile.__libsndfile_version__,
    }
