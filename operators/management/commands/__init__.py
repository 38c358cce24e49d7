"""Each is a module of its name."""
