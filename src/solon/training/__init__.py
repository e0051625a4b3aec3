"""The mathematics of training as pure functions, and the state of a training run on the disk."""
