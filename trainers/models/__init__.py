"""The networks, and what is put around them: normalization, autocast, compilation, batch norm over ranks."""
