"""Studies: what the commands do, from a model or its shapes to a result."""
