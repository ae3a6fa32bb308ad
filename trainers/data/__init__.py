"""Images as integer tensors on the device, batches of them, and the data sets that they come from."""
