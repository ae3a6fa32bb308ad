"""What the energies of a trained net say: points measured under attacks, and the numbers drawn from them."""
