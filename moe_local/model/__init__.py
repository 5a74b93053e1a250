"""transformers' model with paged experts, and every place where we reach into it."""
