"""How models call tools: what each family writes, read back as calls."""
