"""How a cache behaves: live measurement, replay of traces, estimates for machines nobody has bought yet."""
