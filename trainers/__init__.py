"""The science, in PyTorch alone: methods, attacks, energies, the training of one run, and what is measured of it."""
