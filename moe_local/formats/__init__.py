"""How numbers are held, one file a format: encoded, decoded, and never multiplied. `registry` declares them all."""
