"""The experts' forward pass over the tiers, and how transformers' models come to use it."""
