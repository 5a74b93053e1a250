"""Files of prompts in, files of answers out: resumable, each line answered exactly once."""
