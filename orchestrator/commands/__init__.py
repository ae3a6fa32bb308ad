"""The verbs of the command line beside the study itself; `cli` is their door."""
