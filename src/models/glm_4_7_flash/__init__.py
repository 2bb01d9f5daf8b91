"""GLM-4.7-Flash as a plug-in for Inference-PIO hosts, run by Glint. README.md says what it does and does not do.

In a checkout this package is src.models.glm_4_7_flash; an installed glint has it as glint.plugin.
"""

from typing import TYPE_CHECKING, Any

from .config import GLM47DynamicConfig, GLM47FlashConfig

if TYPE_CHECKING:
    from .model import GLM47FlashModel
    from .plugin import GLM_4_7_Flash_Plugin, create_glm_4_7_flash_plugin

__all__ = [
    "GLM47DynamicConfig",
    "GLM47FlashConfig",
    "GLM47FlashModel",
    "GLM_4_7_Flash_Plugin",
    "create_glm_4_7_flash_plugin",
]


def __getattr__(name: str) -> Any:
    """Loads glint's native module only for the names that need it: configs work without."""
    if name == "GLM47FlashModel":
        from . import model

        return model.GLM47FlashModel
    if name in ("GLM_4_7_Flash_Plugin", "create_glm_4_7_flash_plugin"):
        from . import plugin

        return getattr(plugin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
