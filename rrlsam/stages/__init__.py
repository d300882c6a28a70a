"""The paper's stages."""
