"""Hardware profiles, one TOML file a machine. Fields: see `moe_local.profiles.Profile`."""
