"""Models: one, glm_4_7_flash."""
