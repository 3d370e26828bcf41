"""Results of studies as plain data, with JSON both ways."""
