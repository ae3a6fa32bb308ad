"""One study from its plan to its confirmed results: what Optuna proposes, Ray Tune runs and rules stop."""
