"""Networks of other people: their weights without their code, or their code with consent."""
