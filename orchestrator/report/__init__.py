"""The report of a study: figures, tables and one HTML page, from the journals alone."""
