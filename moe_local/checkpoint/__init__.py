"""Reading what users have: headers, names, and where each expert's bytes are."""
