"""The attacks of training: FGSM and its variants, PGD and its losses, all within the ℓ∞ ball."""
