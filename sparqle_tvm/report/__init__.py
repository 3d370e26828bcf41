"""Results as data, and as tables that one reads on a terminal."""
