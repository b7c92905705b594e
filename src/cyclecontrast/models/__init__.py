"""Floor 2, networks: backbones, encoders, and the files they are loaded from."""
