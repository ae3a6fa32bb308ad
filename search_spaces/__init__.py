"""Studies: YAML files that say what may vary, and the loader that checks them before anything runs."""
