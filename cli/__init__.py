"""The command line. Rendering and options only; what is done is done in moe_local."""
