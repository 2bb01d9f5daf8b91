"""The classes of the Inference-PIO plug-in interface that a host looks for, without the host.

Facts of that interface: two generations exist. The newer one is plain classes (initialize, cleanup, infer, load_model,
generate_text, tokenize, detokenize, infer_batch). The older one has some ninety methods more, which plugin.py and
unsupported.py answer.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Any, Dict, List, Optional


class PluginType(enum.Enum):
    MODEL_COMPONENT = "MODEL_COMPONENT"


@dataclasses.dataclass
class PluginMetadata:
    """What a host shows of a plug-in."""

    name: str
    version: str
    author: str
    description: str
    plugin_type: PluginType
    dependencies: List[str]
    compatibility: Dict[str, Any]
    model_architecture: str = ""
    model_size: str = ""
    required_memory_gb: float = 0.0
    supported_modalities: List[str] = dataclasses.field(default_factory=list)
    license: str = ""
    tags: List[str] = dataclasses.field(default_factory=list)
    model_family: str = ""
    num_parameters: int = 0
    test_coverage: float = 0.0
    validation_passed: bool = False
    created_at: Optional[datetime.datetime] = None
    updated_at: Optional[datetime.datetime] = None
