"""Ray: starting or joining one, looking at its nodes, and giving it work: tasks and whole studies as jobs."""
