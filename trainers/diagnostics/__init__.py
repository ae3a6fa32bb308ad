"""What is seen of a run beside its loss: energies, accuracies, abnormal examples, overfitting and its phases."""
