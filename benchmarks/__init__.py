"""The asv suite: compression, convolution and training step, over the registry and the paper's three shapes."""
