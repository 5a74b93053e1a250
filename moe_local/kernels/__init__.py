"""Who multiplies: for each format, device and number of rows. An expert is data here: (layout, slot)."""
