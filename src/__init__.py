"""The C++ engine, and the package path of its Python plug-in (src.models.glm_4_7_flash)."""
