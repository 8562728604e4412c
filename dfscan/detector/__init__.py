"""The deepfake detector: network, checkpoint format, runtimes and heat maps."""
