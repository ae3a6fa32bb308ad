"""Final attacks: which images stand after each, under which protocol, and what makes a result doubtful."""
