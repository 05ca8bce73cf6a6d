"""Data sets: `datasets` reads and decodes on the host, `augment` transforms on the device."""
