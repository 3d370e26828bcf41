"""Language models in Relax, the built-in model file, and text to run them on."""
