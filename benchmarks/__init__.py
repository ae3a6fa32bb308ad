"""Claims about speed, each a script that measures both sides in one run: `make bench` writes RESULTS.md."""
