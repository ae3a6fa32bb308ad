"""Final attacks: on checkpoints and anyone's networks, in shards that are kept as they finish."""
