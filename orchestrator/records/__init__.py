"""What a study remembers: its journal and Optuna's database, and what is read from them."""
