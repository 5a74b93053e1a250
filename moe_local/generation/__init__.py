"""From prompts to text: one generation, and conversations that keep their KV cache."""
