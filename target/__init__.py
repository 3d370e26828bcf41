"""The custom target: accelerator descriptions and the model of their cost."""
