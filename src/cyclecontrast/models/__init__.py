"""Networks: backbones, encoders, projectors, and loading and saving of weights."""
