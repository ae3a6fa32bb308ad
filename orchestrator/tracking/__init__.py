"""MLflow, brought up to date from the journals: an outage stops nothing."""
