"""Where studies run: Ray, Optuna, MLflow and the command line."""
