"""`orchestrator lens`: networks under the same attacks, seen through their energies."""
