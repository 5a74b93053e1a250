"""Hardware profiles, one TOML file a machine. Fields: see `moe_local.planning.machines.Profile`."""
