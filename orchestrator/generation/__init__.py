"""`orchestrator generate`: images from classifiers, made in shards, looked at and measured."""
